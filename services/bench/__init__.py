"""The figures of the pipeline, each as a ratio to a limit measured in the same run; `make bench` reruns them."""
