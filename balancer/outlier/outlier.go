// Package outlier decides which endpoints of a fleet fail so much more often than the others that they should be out
// of service, and which are so much slower that they should get less.
//
// It counts, compares and answers; it does nothing. There is no gRPC in it, no clock, no randomness of its own, no
// lock and no goroutine: whoever runs it says what time it is and how many calls each endpoint has ended and failed so
// far, and puts into effect what it decides. So the same code runs behind a channel and in a simulator's virtual time.
// Package balancer is that caller; almost everybody wants its field Config.Outliers and not this package.
//
// There are two detectors.
//
// [Detector] is ours. It looks back over several spans at once, from half a second to a minute, and asks for each
// endpoint in each of them: given its calls and failures, how sure is it that its failure rate is above a bar, which
// stands well above the rate of the others? It answers with a Beta posterior, so that it needs no least number of
// calls: five failures of five calls are enough, 30 of a hundred are, one of one is not. The others' rate is taken
// without the worst of them, as many as may be out at all, so that a fleet of which 40 % is dead is compared with its
// healthy part; but who is not worse than the mean of all, the bad included, is no outlier. Slow endpoints get a smaller [Host.Share] and are never ejected for it.
//
// [Standard] is gRFC A50, by its rules and with its defaults, for those who want what the rest of their fleet runs.
// The two differ most where nothing is wrong. In an hour of a healthy fleet of 20, 100 or so, with errors that come by
// chance, A50 keeps 6 to 8 % of the endpoints out at any time, because its threshold is a multiple of a deviation that
// is small when all is well; Detector keeps out none (TestHealthyFleet). With more than 22 % of a fleet dead A50
// ejects nobody, because the dead widen the deviation (TestDeadFleet). It waits for the end of an interval of 10 s and
// for 100 calls to each endpoint from this very client, which a client of a large fleet never makes.
//
// # What it costs
//
// A step takes time in proportion to the endpoints: 10,000 of which few fail take half a millisecond or so, and 15 ms
// while all of them fail a third of their calls (BenchmarkStep). It is meant to be taken twice a second, and only while
// something has failed lately. It allocates for verdicts only. A Host has 352 bytes.
//
// # When not to use it
//
// A fleet of one has nobody to compare with. Where every endpoint is asked other things, as with a hash of the key,
// a failure rate says as much about the keys as about the endpoint; the bar's distance to the others is then the
// margin that an unlucky endpoint has. A dead endpoint needs none of this: three failures in a row, which package
// balancer counts as well, are faster evidence.
package outlier

import "time"

// Host is one endpoint as a detector sees it. Its zero value is ready: an endpoint that has not been seen before. It
// belongs to one detector, of which it holds the memory, and is not safe for concurrent use.
type Host struct {
	// Calls and Failures are how many calls have ended so far, and how many of these failed, since the endpoint's life
	// began. The caller sets them before each step; only differences count.
	Calls, Failures uint64
	// Timed is how many calls have been timed so far, and Latency the sum of their durations in nanoseconds. They may
	// stay 0: then nothing is known about how fast the endpoint is.
	Timed, Latency uint64
	// Out says that the endpoint is out of service, or on probation, for whatever reason. It is then neither judged
	// nor compared with, and its record begins anew when it is back.
	Out bool

	seen bool
	past [2 * levels]count // for each level the count at its beginning, and at the one before
	slow [2]timing
	// share is what is taken away from the endpoint's share: so that the zero value gets all of it.
	less float64

	a50 sentence
}

// Share is the part of its usual calls that the endpoint should get for its latency, from 0.1 to 1.
func (h *Host) Share() float64 { return 1 - h.less }

// Verdict is what a step decides about one endpoint.
type Verdict struct {
	// Host is the endpoint's place in the slice that was judged.
	Host int
	// Return says that its ejection is over. Only [Standard] says so; otherwise the endpoint is to be ejected.
	Return bool
	// For is how long the ejection lasts; 0 leaves that to the caller.
	For time.Duration
	// Reason is the evidence, for people.
	Reason string
}

// Judge is what both detectors are.
type Judge interface {
	// Step judges hosts as of now, in nanoseconds of a clock that starts anywhere. The verdicts are valid until the next
	// step. It is for the caller to set Host.Out accordingly. A Detector gives a verdict again as long as that is not done;
	// a Standard remembers whom it has ejected.
	Step(now int64, hosts []*Host) []Verdict
	// Interval is the time between two steps.
	Interval() time.Duration
}

// count is what had ended at some moment.
type count struct{ calls, failures uint64 }

func (h *Host) count() count { return count{h.Calls, h.Failures} }

// since is how much has ended since c; a counter that runs backwards counts as none.
func (c count) since(then count) count {
	if c.calls < then.calls || c.failures < then.failures {
		return count{}
	}
	d := count{c.calls - then.calls, c.failures - then.failures}
	d.calls = max(d.calls, d.failures) // the two are not read at one moment
	return d
}

func (c count) without(o count) count { return count{c.calls - o.calls, c.failures - o.failures} }

// rate is the part of the calls that failed; there is at least one.
func (c count) rate() float64 { return float64(c.failures) / float64(c.calls) }
