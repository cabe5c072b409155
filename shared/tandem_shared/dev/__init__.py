"""`tandem dev`: servers, processes and the demo on one machine."""
