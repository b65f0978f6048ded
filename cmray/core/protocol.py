"""Numbers that are part of what a measured value means, each in one place."""

#: seeds that go through the network and the extractor together unless an experiment says otherwise
BLOCK = 256
#: the same of images that are there already; what a reference's hash depends on
REFERENCE_BLOCK = 256
#: below so many samples a number says mostly how few they are
FEW = 10_000
