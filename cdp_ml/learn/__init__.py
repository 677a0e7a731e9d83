"""Features to models to scores: labels, training sets, estimators, evaluation, registry."""
