"""FairIF: reweighting by influence functions (Wang, Wu and He, WSDM 2024).

relaxation.py   TPR and TNR of the groups, differentiable, and their gaps
hessian.py      products with the inverse Hessian: exact, conjugate gradients, LiSSA
influence.py    the influence of every training sample on both gaps
reweight.py     sample weights from the scores, in closed form
fairif.py       the two stages and the shuffled control
training.py     training on weighted samples until the gradient vanishes
networks.py     logistic regression and the MLP
method.py       FairIF as a method of train.py, on images
problem.py      a split in memory, with the labels a method may see
baselines/      CFair, DOMIND, ARL, FairSMOTE and Influence
splits.py       every row of Table 4 on one split
tables.py       Table 4: `python -m models.fairif.tables --table 4`
"""
