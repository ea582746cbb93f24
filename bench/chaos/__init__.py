"""Many requests while clients leave and engines break: does every count agree afterwards?"""
