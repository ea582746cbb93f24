# For Cython modules only: nothing here can be called from Python.
