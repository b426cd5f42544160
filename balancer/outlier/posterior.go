package outlier

import "math"

// below is how likely it is that an endpoint with these calls and failures fails at a rate of bar or less. What is
// believed before the first call is a Beta distribution with the others' rate as its mean and the weight of one
// call: enough to tell three failures of three calls from one of one.
func below(bar, others float64, c count) float64 {
	failed, rest := float64(c.failures), float64(c.calls-c.failures)
	return betaCDF(bar, failed+others, rest+1-others)
}

// betaCDF is the regularised incomplete beta function I_x(a, b): the chance that a value with the distribution
// Beta(a, b) is x or less. a and b are positive. It is evaluated as a continued fraction (DLMF 8.17.22) on the side of
// the mean on which that converges fast.
func betaCDF(x, a, b float64) float64 {
	switch {
	case x <= 0:
		return 0
	case x >= 1:
		return 1
	case x > (a+1)/(a+b+2):
		return 1 - betaTail(1-x, b, a)
	}
	return betaTail(x, a, b)
}

// betaTail is I_x(a, b) for x up to the mean or so.
func betaTail(x, a, b float64) float64 {
	la, _ := math.Lgamma(a)
	lb, _ := math.Lgamma(b)
	lab, _ := math.Lgamma(a + b)
	front := math.Exp(lab-la-lb+a*math.Log(x)+b*math.Log1p(-x)) / a
	return min(1, front*betaFraction(x, a, b))
}

// betaFraction is the continued fraction 1/(1+ d1/(1+ d2/(1+ ...))) by the modified method of Lentz.
func betaFraction(x, a, b float64) float64 {
	const (
		tiny    = 1e-300 // in place of a zero that would be divided by
		enough  = 1e-12
		maximum = 10_000 // the number of steps grows with the root of a or b
	)
	clear0 := func(v float64) float64 {
		if math.Abs(v) < tiny {
			return tiny
		}
		return v
	}
	c, d := 1.0, 1/clear0(1-(a+b)*x/(a+1))
	f := d
	for i := 1; i < maximum; i++ {
		m := float64(i)
		even := m * (b - m) * x / ((a + 2*m - 1) * (a + 2*m))
		d = 1 / clear0(1+even*d)
		c = clear0(1 + even/c)
		f *= c * d
		odd := -(a + m) * (a + b + m) * x / ((a + 2*m) * (a + 2*m + 1))
		d = 1 / clear0(1+odd*d)
		c = clear0(1 + odd/c)
		f *= c * d
		if math.Abs(c*d-1) < enough {
			break
		}
	}
	return f
}
