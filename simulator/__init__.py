"""placewright: where should a model run, and what should be bought?"""
