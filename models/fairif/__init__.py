"""FairIF: reweighting by influence functions (Wang, Wu and He, WSDM 2024).

relaxation.py   TPR and TNR of the groups, differentiable, and their gaps
hessian.py      products with the inverse Hessian: exact, conjugate gradients, LiSSA
influence.py    the influence of every training sample on both gaps
reweight.py     sample weights from the scores, in closed form
method.py       FairIF as a method of train.py
controls.py     its controls, and its rows with fewer labels
baselines/      CFair, DOMIND, ARL, FairSMOTE and Influence
"""
