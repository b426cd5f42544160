package estimate

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
		var e Estimator
		for _, p := range c.samples {
			e.Record(p.rif, p.latency, p.at)
		}
		if got := e.Median(c.rif, c.now); got != c.want {
			t.Errorf("%s: %d ms, want %d", c.name, got/ms, c.want/ms)
		}
	}
}

// TestSamples: few samples are enough to leave older ones out, and as few as asked for.
func TestSamples(t *testing.T) {
	const ms, s = int64(1e6), int64(1e9)
	for _, c := range []struct {
		samples int
		want    int64
	}{{0, 100 * ms}, {4, 10 * ms}, {5, 100 * ms}, {99, 100 * ms}} {
		e := Estimator{Samples: c.samples}
		for range 12 {
			e.Record(3, 100*ms, s)
		}
		for range 4 {
			e.Record(3, 10*ms, s+200*ms)
		}
		if got := e.Median(3, s+200*ms); got != c.want {
			t.Errorf("with %d samples the median is %d ms, want %d", c.samples, got/ms, c.want/ms)
		}
	}
}

// TestLongLife: more requests than an int32 counts.
func TestLongLife(t *testing.T) {
	var e Estimator
	r := &e.rings[bucket(3)]
	r.n = 1<<32 - 3
	for i := range int64(20) {
		e.Record(3, 7, i+1)
	}
	if got := e.Median(3, 20); got != 7 {
		t.Errorf("after 2^32 requests the median is %d, want 7", got)
	}
}

// TestBuckets: levels are in order, none is left out, and each has its middle in itself.
func TestBuckets(t *testing.T) {
	last := 0
	for rif := range 1 << 17 {
		b := bucket(rif)
		if b < last || b > last+1 || b >= buckets {
			t.Fatalf("%d in flight is level %d, after %d", rif, b, last)
		}
		last = b
	}
	for b := range buckets {
		if got := bucket(middle(b)); got != b {
			t.Errorf("the middle of level %d, %d, is of level %d", b, middle(b), got)
		}
	}
	if bucket(-1) != 0 || bucket(1<<40) != buckets-1 {
		t.Error("what is below and above all levels is not of the first and the last")
	}
}
