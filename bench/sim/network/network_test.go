package network

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/evenkeel/evenkeel/bench/sim/engine"
)

func TestDelay(t *testing.T) {
	for name, c := range map[string]struct {
		cfg      Config
		from, to string
		want     time.Duration // without jitter
	}{
		"default, one zone":  {Config{Jitter: -1}, "a", "a", 100 * time.Microsecond},
		"default, two zones": {Config{Jitter: -1}, "a", "b", 500 * time.Microsecond},
		"no zones":           {Config{Jitter: -1}, "", "", 100 * time.Microsecond},
		"own, one zone":      {Config{Local: time.Millisecond, Remote: time.Second, Jitter: -1}, "a", "a", time.Millisecond},
		"own, two zones":     {Config{Local: time.Millisecond, Remote: time.Second, Jitter: -1}, "a", "b", time.Second},
	} {
		for luck := range uint64(10) {
			if got := c.cfg.Delay(c.from, c.to, luck); got != int64(c.want) {
				t.Errorf("%s: %d with luck %d, want %d", name, got, luck, c.want)
			}
		}
	}
}

// TestJitter: what comes on top of the base is exponential, and depends on the message's luck alone.
func TestJitter(t *testing.T) {
	const n = 100_000
	for _, c := range []struct {
		cfg  Config
		mean float64
	}{{Config{}, 20_000}, {Config{Jitter: time.Millisecond}, 1e6}} {
		var extra []float64
		sum := 0.0
		for i := range uint64(n) {
			d := c.cfg.Delay("", "", i)
			if d != c.cfg.Delay("", "", i) {
				t.Fatal("one message has two delays")
			}
			extra = append(extra, float64(d)-100_000)
			sum += extra[i]
		}
		slices.Sort(extra)
		if got := sum / n; extra[0] < 0 || math.Abs(got/c.mean-1) > 0.02 {
			t.Errorf("%+v: the jitter is %.0f ns on average, and %.0f at least, want %.0f and 0 or more", c.cfg, got,
				extra[0], c.mean)
		}
		for _, q := range []float64{0.5, 0.9, 0.99} {
			if got, want := extra[int(q*n)], -c.mean*math.Log(1-q); math.Abs(got/want-1) > 0.03 {
				t.Errorf("%+v: quantile %v of the jitter is %.0f, want %.0f", c.cfg, q, got, want)
			}
		}
	}
}

// TestLoss: a lost message is late by 200 ms, by 600 if it is lost twice, and so on; others are not.
func TestLoss(t *testing.T) {
	const n = 200_000
	const loss = 0.05
	seen := make(map[int64]int)
	for i := range uint64(n) {
		seen[Config{Jitter: -1, Loss: loss}.Delay("", "", engine.Mix(i))-100_000]++
	}
	for times, late := range []time.Duration{0, 200 * time.Millisecond, 600 * time.Millisecond} {
		want := n * math.Pow(loss, float64(times)) * (1 - loss)
		if got := float64(seen[int64(late)]); math.Abs(got-want) > 5*math.Sqrt(want) {
			t.Errorf("%v of %d messages are late by %v, want %.0f", got, n, late, want)
		}
	}
}

func TestValidate(t *testing.T) {
	for want, c := range map[string]Config{
		"":            {},
		"local = -1":  {Local: -1},
		"remote = -1": {Remote: -1},
		"loss = 1,":   {Loss: 1},
		"loss = -0.1": {Loss: -0.1},
		"loss = NaN":  {Loss: math.NaN()},
	} {
		if err := c.Validate(); (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want %q in it", c, err, want)
		}
	}
}
