"""The lake: a Delta table per dataset on HDFS, and the engines that read and write it."""
