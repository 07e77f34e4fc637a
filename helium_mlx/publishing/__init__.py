"""One commit to the Hub: what may go, the repository as found, the upload."""
