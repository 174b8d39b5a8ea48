"""FairIF: reweighting by influence functions (Wang, Wu and He, WSDM 2024).

relaxation.py   TPR and TNR of the groups, differentiable, and their gaps
hessian.py      products with the inverse Hessian: exact, conjugate gradients, LiSSA
influence.py    the influence of every training sample on both gaps
reweight.py     sample weights from the scores, in closed form
method.py       FairIF, its control and its shares of labels as methods of train.py
baselines/      CFair, DOMIND, ARL, FairSMOTE and Influence
"""
