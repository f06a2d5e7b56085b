# A SIGTERM sent to the whole process group is for the Python driver, which lets the batch under way end and then
# ends the JVM. (An ignored signal stays ignored across exec.)
trap '' TERM
