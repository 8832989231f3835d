"""Names of the files in a bundle, and in the folders that it is made of."""

BUNDLE_FILE, CARD_FILE, FINGERPRINT_FILE = "bundle.json", "card.md", "fingerprint.npz"
TRAINED_ON_FILE = "trained-on.txt"
NETWORKS = "networks"
#: Of a network, in addition to those that `tasks.networks.network` writes.
GRAPH, PARITY = "network.onnx", "parity.json"
