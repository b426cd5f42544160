package metrics

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Jain is Jain's index of fairness: 1 if all of x are equal, 1/n if all but one are 0. It is 1 for no load at all.
func Jain(x []float64) float64 {
	sum, squares := 0.0, 0.0
	for _, v := range x {
		sum += v
		squares += v * v
	}
	if squares == 0 {
		return 1
	}
	return sum * sum / (float64(len(x)) * squares)
}

// CoV is the coefficient of variation, the standard deviation as a part of the mean; 0 if the mean is 0.
func CoV(x []float64) float64 {
	mean := Mean(x)
	if mean == 0 {
		return 0
	}
	squares := 0.0
	for _, v := range x {
		squares += (v - mean) * (v - mean)
	}
	return math.Sqrt(squares/float64(len(x))) / mean
}

// MaxMean is the largest of x as a multiple of the mean; 1 if the mean is 0.
func MaxMean(x []float64) float64 {
	most := 0.0
	for _, v := range x {
		most = max(most, v)
	}
	if most == 0 {
		return 1
	}
	return most / Mean(x)
}

// Mean is the arithmetic mean; NaN of nothing.
func Mean(x []float64) float64 {
	sum := 0.0
	for _, v := range x {
		sum += v
	}
	return sum / float64(len(x))
}

// Interval is a 95 % confidence interval of the mean of x, such as differences between two policies under the same
// seeds: the wider, on each side, of a bootstrap's and of Student's. A bootstrap of a handful of values is too sure of
// itself, and Student's interval of skewed values stands in the wrong place. It says nothing of fewer than 3 values: then
// it is infinite. Its resampling is fixed, so the same values give the same interval.
func Interval(x []float64) (low, high float64) {
	const resamples = 2000
	if len(x) < 3 {
		return math.Inf(-1), math.Inf(1)
	}
	r := rand.New(rand.NewPCG(uint64(len(x)), 0x9e3779b97f4a7c15))
	means := make([]float64, resamples)
	for i := range means {
		sum := 0.0
		for range x {
			sum += x[r.IntN(len(x))]
		}
		means[i] = sum / float64(len(x))
	}
	slices.Sort(means)
	mean := Mean(x)
	squares := 0.0
	for _, v := range x {
		squares += (v - mean) * (v - mean)
	}
	n := float64(len(x))
	half := student(len(x)-1) * math.Sqrt(squares/(n-1)/n)
	return min(means[resamples*25/1000], mean-half), max(means[resamples*975/1000-1], mean+half)
}

// student is the 97.5 % quantile of Student's distribution with so many degrees of freedom: a table, and from 10 on the
// Cornish-Fisher expansion, which is right to three digits there.
func student(freedom int) float64 {
	table := []float64{12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262}
	if freedom <= len(table) {
		return table[freedom-1]
	}
	const z = 1.959964
	v := float64(freedom)
	return z + (z*z*z+z)/(4*v) + (5*z*z*z*z*z+16*z*z*z+3*z)/(96*v*v) +
		(3*math.Pow(z, 7)+19*math.Pow(z, 5)+17*z*z*z-15*z)/(384*v*v*v)
}
