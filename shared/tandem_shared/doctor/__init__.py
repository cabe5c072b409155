"""`tandem doctor`: checks the promises against Redis, the ledger and the file store."""
