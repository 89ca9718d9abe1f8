"""`rg-published`, the RG of Fermanian, Le Pendu and Guillemot with the weights that they publish.

It is not trained here: config/weights.yaml has an entry of this name.
"""

LABEL = "RG, published"
COLOR = "#000000"
NETWORKS = {"rg": False}
PUBLISHED = True
