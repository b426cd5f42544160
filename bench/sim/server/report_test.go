package server

import "testing"

// TestMedian: what the estimator says about a load, from samples of it and of others.
func TestMedian(t *testing.T) {
	const ms, s = int64(1e6), int64(1e9)
	type sample struct {
		rif         int
		latency, at int64
	}
	for _, c := range []struct {
		name    string
		samples []sample
		rif     int
		now     int64
		want    int64
	}{
		{"nothing is known", nil, 3, s, 0},
		{"of this load", []sample{{3, 10 * ms, s}, {3, 20 * ms, s}, {3, 90 * ms, s}}, 3, s, 20 * ms},
		{"of about this load", []sample{{5, 10 * ms, s}}, 3, s, 10 * ms},
		{"of another load: as many share what there is", []sample{{5, 60 * ms, s}}, 11, s, 120 * ms},
		{"an old one of this load before a new one of another",
			[]sample{{1, 100 * ms, 1}, {10, 100 * ms, 30 * s}}, 1, 30 * s, 100 * ms},
		{"a stuck server says what it last knew", []sample{{3, 10 * ms, 1}}, 3, 200 * s, 10 * ms},
	} {
		var e estimator
		for _, p := range c.samples {
			e.record(p.rif, p.latency, p.at)
		}
		if got := e.median(c.rif, c.now); got != c.want {
			t.Errorf("%s: %d ms, want %d", c.name, got/ms, c.want/ms)
		}
	}
}
