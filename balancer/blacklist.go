package balancer

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/bits"
	"time"

	"github.com/evenkeel/evenkeel/internal/strictjson"
	"github.com/evenkeel/evenkeel/outcome"
)

// Blacklist says when a failing instance is taken out of service and how it comes back. Its zero value has the
// defaults.
//
// An endpoint whose calls fail Failures times in a row is ejected for BaseEjection; each further ejection lasts
// BaseEjection longer, up to MaxEjection, with 10 % of jitter, and each BaseEjection spent in good health takes one
// step back. When its time is over it gets one probing call at a time: a failure, or no end within ProbeTimeout,
// ejects it again; a success clears it. Never more than MaxEjectedPercent of the instances that could serve a call
// are out at once: beyond that the least bad stay in, with fewer calls the worse they are. ADR-0008 has the reasons.
type Blacklist struct {
	// Disabled switches the blacklist off.
	Disabled bool
	// Failures is how many failures in a row eject; 0 means 3.
	Failures int
	// BaseEjection is the length of the first ejection, and by how much each further one is longer; 0 means 30 s.
	BaseEjection time.Duration
	// MaxEjection bounds an ejection's length; 0 means 300 s, or BaseEjection if that is longer.
	MaxEjection time.Duration
	// MaxEjectedPercent is how many of a candidate set may be out at once, from 1 to 100; 0 means 50. It is
	// rounded down, and one instance always stays in.
	MaxEjectedPercent int
	// ProbeTimeout is how long a probing call may take before it counts as failed; 0 means 5 s. A probing stream
	// that is still open then decides nothing, and the next call probes.
	ProbeTimeout time.Duration
	// Classifier names what counts as a failure: a classifier registered with [outcome.Register]. Empty means
	// [outcome.Default], with which a failure in doubt ([outcome.Doubtful]) needs a second witness; what another
	// classifier calls a failure is one.
	Classifier string
}

// blacklistJSON is a Blacklist as it stands in JSON, where durations are texts such as "30s".
type blacklistJSON struct {
	Disabled          bool                `json:"disabled,omitempty"`
	Failures          int                 `json:"failures,omitempty"`
	BaseEjection      strictjson.Duration `json:"baseEjection,omitzero"`
	MaxEjection       strictjson.Duration `json:"maxEjection,omitzero"`
	MaxEjectedPercent int                 `json:"maxEjectedPercent,omitempty"`
	ProbeTimeout      strictjson.Duration `json:"probeTimeout,omitzero"`
	Classifier        string              `json:"classifier,omitempty"`
}

// MarshalJSON implements [json.Marshaler].
func (b Blacklist) MarshalJSON() ([]byte, error) {
	return json.Marshal(blacklistJSON{b.Disabled, b.Failures, strictjson.Duration(b.BaseEjection), strictjson.Duration(b.MaxEjection),
		b.MaxEjectedPercent, strictjson.Duration(b.ProbeTimeout), b.Classifier})
}

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error.
func (b *Blacklist) UnmarshalJSON(js []byte) error {
	var j blacklistJSON
	if err := strictjson.Unmarshal(js, &j); err != nil {
		return strictjson.At("blacklist", err)
	}
	*b = Blacklist{j.Disabled, j.Failures, time.Duration(j.BaseEjection), time.Duration(j.MaxEjection),
		j.MaxEjectedPercent, time.Duration(j.ProbeTimeout), j.Classifier}
	return nil
}

const (
	// maxFailures bounds Failures to what the health word can count.
	maxFailures = 1000
	// maxEjectionTime bounds all durations, so that their sums do not overflow.
	maxEjectionTime = 365 * 24 * time.Hour
)

// judge is a validated Blacklist with its defaults filled in.
type judge struct {
	disabled         bool
	failures         int
	base, max, probe int64 // ns
	percent          int
	classify         outcome.Classifier
	doubts           bool // UNKNOWN and INTERNAL want a second witness: the default classifier's rule
}

func (b Blacklist) resolve() (judge, error) {
	for _, f := range []struct {
		name string
		d    time.Duration
	}{{"baseEjection", b.BaseEjection}, {"maxEjection", b.MaxEjection}, {"probeTimeout", b.ProbeTimeout}} {
		if f.d < 0 || f.d > maxEjectionTime {
			return judge{}, fmt.Errorf("blacklist.%s = %v, want 1ns to %v", f.name, f.d, maxEjectionTime)
		}
	}
	j := judge{
		disabled: b.Disabled,
		failures: cmp.Or(b.Failures, 3),
		base:     int64(cmp.Or(b.BaseEjection, 30*time.Second)),
		probe:    int64(cmp.Or(b.ProbeTimeout, 5*time.Second)),
		percent:  cmp.Or(b.MaxEjectedPercent, 50),
	}
	j.max = int64(b.MaxEjection)
	if j.max == 0 {
		j.max = max(int64(300*time.Second), j.base)
	}
	if j.failures < 1 || j.failures > maxFailures {
		return judge{}, fmt.Errorf("blacklist.failures = %d, want 1 to %d", b.Failures, maxFailures)
	}
	if j.percent < 1 || j.percent > 100 {
		return judge{}, fmt.Errorf("blacklist.maxEjectedPercent = %d, want 1 to 100", b.MaxEjectedPercent)
	}
	if j.max < j.base {
		return judge{}, fmt.Errorf("blacklist.maxEjection = %v, want at least baseEjection, which is %v",
			time.Duration(j.max), time.Duration(j.base))
	}
	var err error
	if j.classify, err = outcome.Lookup(b.Classifier); err != nil {
		return judge{}, fmt.Errorf("blacklist.%w", err)
	}
	j.doubts = b.Classifier == "" || b.Classifier == "default"
	return j, nil
}

// allowed is how many of n candidates may be out at once.
func (j *judge) allowed(n int) int { return min(n*j.percent/100, n-1) }

// health is what an endpoint's last outcomes were, in one word: the last 20 outcomes (bits 0 to 19, 1 for a
// failure, the latest in bit 0), how many there are (bits 20 to 24), and the current run of failures, all of them
// (bits 32 to 47) and those that are beyond doubt (bits 48 to 63). It is a value; the endpoint keeps it in an atomic.
type health uint64

const (
	windowSize = 20
	windowMask = 1<<windowSize - 1
	runMask    = 1<<16 - 1
)

func (h health) count() int   { return int(h >> windowSize & 31) }
func (h health) failed() int  { return bits.OnesCount32(uint32(h & windowMask)) }
func (h health) run() int     { return int(h >> 32 & runMask) }
func (h health) certain() int { return int(h >> 48 & runMask) }

func (h health) push(bit health) health {
	window := (h<<1 | bit) & windowMask
	count := health(min(h.count()+1, windowSize))
	return h&^(1<<32-1) | count<<windowSize | window
}

// perfect is the word of an endpoint whose last 20 outcomes were good: the common case, which needs no write.
const perfect = health(windowSize << windowSize)

// ok records a success.
func (h health) ok() health { return h.push(0) & (1<<32 - 1) }

// answered records an end that is no failure and no success either, such as NOT_FOUND: the endpoint does answer,
// which speaks against taking its doubtful errors seriously, but it ends no run of failures.
func (h health) answered() health { return h.push(0) }

// fail records a failure.
func (h health) fail(doubtful bool) health {
	run, certain := min(h.run()+1, runMask), h.certain()
	if !doubtful {
		certain = min(certain+1, runMask)
	}
	h = h.push(1) & (1<<32 - 1)
	return h | health(run)<<32 | health(certain)<<48
}

// corroborated reports whether half of the known outcomes failed, which is what makes a doubtful failure count.
func (h health) corroborated() bool { return 2*h.failed() >= h.count() }

// trips reports whether the run of failures is long enough to eject. UNKNOWN and INTERNAL may be the answers of a
// healthy handler, so a run that needs them counts only if half of the last outcomes failed.
func (h health) trips(failures int) bool {
	return h.certain() >= failures || h.run() >= failures && h.corroborated()
}

// leastWorth is what is left of the share of an endpoint that is kept in though it fails every call.
const leastWorth = 0.2

// worth is how much of its share an endpoint with this health is to get while it is blacklisted and yet kept in: as many
// of its last calls as were good, and little if it fails all of them now.
func (h health) worth(j *judge) float64 {
	if h.run() >= j.failures || h.count() == 0 {
		return leastWorth
	}
	return max(leastWorth, 1-float64(h.failed())/float64(h.count()))
}

// phase is where an endpoint stands with the blacklist.
type phase uint32

const (
	healthy phase = iota
	ejected
	probing
)

// sentence is the state of an endpoint's ejections. It is stepped by (now, event) and guarded by the policy's mutex.
type sentence struct {
	level    int   // how many ejections the next one's length builds on
	until    int64 // when the current ejection ends
	began    int64 // when it began
	cleared  int64 // when the last one ended well; level decays from there
	probeEnd int64 // when the probing call under way counts as failed; 0 if there is none
	stream   bool  // the probing call is a stream
}

// eject begins an ejection at now and returns its length. draw is 64 random bits.
func (s *sentence) eject(now int64, j *judge, draw uint64) time.Duration {
	if s.cleared != 0 && now > s.cleared {
		spells := (now - s.cleared) / j.base // one step back for each healthy spell
		s.level = max(0, s.level-int(min(spells, int64(s.level))))
	}
	// No further than where the length is at its bound: what comes on top would only have to be lived down.
	s.level = min(s.level+1, int((j.max-1)/j.base)+1)
	length := j.max
	if int64(s.level) <= j.max/j.base { // the product would overflow one day
		length = int64(s.level) * j.base
	}
	jitter := float64(draw>>11)/(1<<53)*0.2 - 0.1
	length += int64(float64(length) * jitter)
	if length > j.max { // stay below the bound, and spread out below it
		length = 2*j.max - length
	}
	s.began, s.until, s.cleared, s.probeEnd = now, now+length, 0, 0
	return time.Duration(length)
}

// clear ends the ejection for good.
func (s *sentence) clear(now int64) {
	s.until, s.probeEnd, s.cleared = 0, 0, now
}

// due is when something happens to an endpoint in phase p by itself; 0 for never.
func (s *sentence) due(p phase) int64 {
	switch p {
	case ejected:
		return s.until
	case probing:
		return s.probeEnd
	}
	return 0
}

// worse orders endpoints that are out by how bad they are, best first: one that may be probed before one that is
// still out, then fewer ejections, then fewer failures lately, then the longest out.
func worse(a, b *Endpoint) int {
	return cmp.Or(
		cmp.Compare(b.phase(), a.phase()),
		cmp.Compare(a.sentence.level, b.sentence.level),
		cmp.Compare(a.health().failed(), b.health().failed()),
		cmp.Compare(a.sentence.began, b.sentence.began),
	)
}
