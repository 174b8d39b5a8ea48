"""FairIF: reweighting by influence functions (Wang, Wu and He, WSDM 2024).

relaxation.py   TPR and TNR of the groups, differentiable, and their gaps
hessian.py      products with the inverse Hessian: exact, conjugate gradients, LiSSA
influence.py    the influence of every training sample on both gaps
reweight.py     sample weights from the scores, in closed form
fairif.py       the two stages and the shuffled control
training.py     training on weighted samples until the gradient vanishes
networks.py     logistic regression, MLP, CNN and LeNet
method.py       FairIF as a method of train.py, on images
problem.py      a split in memory, with the labels a method may see
baselines/      CFair, DOMIND, ARL, FairSMOTE and Influence, on data in memory
images/         the same five as methods of train.py
splits.py       every row of Table 4 on one split
digits.py       every row of Tables 1 to 3 on one bias and seed of CI-MNIST
summary.py      figures, paired differences and the text of the tables
tables.py       Tables 1 to 4: `python -m models.fairif.tables --table 4`
"""
