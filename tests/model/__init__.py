"""The sequential reference model of what the worker means, and the histories it is compared over.

It is written from the rules alone and must never import the worker: a model that shares its code proves nothing.
"""
