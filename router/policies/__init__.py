"""One policy per file; `router.policy` lists them."""
