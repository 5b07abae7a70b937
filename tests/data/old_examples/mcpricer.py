"""Prices of options by simulated paths; the driver runs this file on all engines."""

from math import exp, sqrt

import numpy as N


class MCOptionPricer(object):
    def __init__(self, S=100.0, K=100.0, sigma=0.25, r=0.05, days=260, paths=10000):
        self.S = S
        self.K = K
        self.sigma = sigma
        self.r = r
        self.days = days
        self.paths = paths
        self.h = 1.0/self.days
        self.const1 = exp((self.r - 0.5*self.sigma**2)*self.h)
        self.const2 = self.sigma*sqrt(self.h)

    def run(self):
        price = self.S*N.ones(self.paths, dtype="float64")
        total = N.zeros(self.paths, dtype="float64")
        for j in range(self.days):
            price = price*self.const1*N.exp(self.const2*N.random.standard_normal(self.paths))
            total = total + price
        average = total/self.days
        discount = exp(-self.r*self.h*self.days)
        self.vanilla_put = discount*N.mean(N.maximum(0.0, self.K - price))
        self.asian_put = discount*N.mean(N.maximum(0.0, self.K - average))
        self.vanilla_call = discount*N.mean(N.maximum(0.0, price - self.K))
        self.asian_call = discount*N.mean(N.maximum(0.0, average - self.K))
