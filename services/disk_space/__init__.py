"""`logpipe disk-space`: tells other processes how full the disk of a folder is, from beside the server that uses it."""
