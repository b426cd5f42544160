package balancer

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/evenkeel/evenkeel/balancer/outlier"
	"github.com/evenkeel/evenkeel/internal/strictjson"
)

// Outliers says how instances are found that fail more often than the others without failing several times in a row,
// and instances that are slower. Its zero value has the defaults: they are found and ejected, latency is not looked at.
//
// An instance is ejected when it is as good as certain that its failure rate is above a bar, which is the rate of the
// others plus Margin, or OddsRatio times their odds if that is more. It is judged over several spans between half
// a second and a minute, so a few calls are enough if they are bad enough (package outlier has the method). What
// counts as a failure is what counts for the blacklist, except that a failure in doubt needs no second witness: the
// others are one. From then on it is an ejection like any other: [Blacklist] says how long it lasts, how the instance
// is probed, and that never too many are out. With the blacklist Disabled nobody is ejected for this either.
//
// A call that succeeds pays nothing. After a failure the counters of all instances are looked at twice a second, until
// nothing has failed for a minute. ADR-0019 has the reasons and the figures.
type Outliers struct {
	// Disabled switches all of it off.
	Disabled bool
	// DryRun ejects nobody and takes no weight from anybody: who would have been ejected is logged, reported as
	// [WouldEject], and not reported again for Blacklist.BaseEjection.
	DryRun bool
	// Margin is by how much the failure rate must exceed that of the others, from 0.001 to 1; 0 means 0.05.
	Margin float64
	// OddsRatio is by how much the odds of failing must exceed theirs, from 1 to 1000; 0 means 3. It is what counts when
	// everybody fails: with the others at 30 % the bar is at 56 %.
	OddsRatio float64
	// Confidence is how sure it must be, from 0.9 to less than 1; 0 means 0.999.
	Confidence float64
	// Slow is from how many times the others' median latency on an instance gets fewer calls, from 1.5 to 1000; 3 is
	// a good value. At twice that latency it gets half of its calls, and never less than a tenth; it is not
	// ejected. 0 means that latency is not looked at. With it every call is timed, for which strategies that do not
	// measure read the clock twice, and the counters are looked at all the time.
	Slow float64
	// A50, if not nil, has gRPC's own outlier detection (gRFC A50) decide instead, with its parameters. It counts every
	// error, as grpc-go does, and sweeps at each interval. What it ejects comes back when A50's time is over, by a
	// probing call. A run of failures still ejects: that is [Blacklist.Failures].
	A50 *outlier.A50
}

// outliersJSON is an Outliers as it stands in JSON.
type outliersJSON struct {
	Disabled   bool     `json:"disabled,omitempty"`
	DryRun     bool     `json:"dryRun,omitempty"`
	Margin     float64  `json:"margin,omitempty"`
	OddsRatio  float64  `json:"oddsRatio,omitempty"`
	Confidence float64  `json:"confidence,omitempty"`
	Slow       float64  `json:"slow,omitempty"`
	A50        *a50JSON `json:"a50,omitempty"`
}

// a50JSON has the names of gRFC A50. There 0 is a value and not the default, so it is told from what is absent.
type a50JSON struct {
	Interval                  *strictjson.Duration   `json:"interval,omitempty"`
	BaseEjectionTime          *strictjson.Duration   `json:"baseEjectionTime,omitempty"`
	MaxEjectionTime           *strictjson.Duration   `json:"maxEjectionTime,omitempty"`
	MaxEjectionPercent        *int                   `json:"maxEjectionPercent,omitempty"`
	SuccessRateEjection       *successRateJSON       `json:"successRateEjection,omitempty"`
	FailurePercentageEjection *failurePercentageJSON `json:"failurePercentageEjection,omitempty"`
}

type successRateJSON struct {
	StdevFactor           *int `json:"stdevFactor,omitempty"`
	EnforcementPercentage *int `json:"enforcementPercentage,omitempty"`
	MinimumHosts          *int `json:"minimumHosts,omitempty"`
	RequestVolume         *int `json:"requestVolume,omitempty"`
}

type failurePercentageJSON struct {
	Threshold             *int `json:"threshold,omitempty"`
	EnforcementPercentage *int `json:"enforcementPercentage,omitempty"`
	MinimumHosts          *int `json:"minimumHosts,omitempty"`
	RequestVolume         *int `json:"requestVolume,omitempty"`
}

// MarshalJSON implements [json.Marshaler].
func (o Outliers) MarshalJSON() ([]byte, error) {
	j := outliersJSON{o.Disabled, o.DryRun, o.Margin, o.OddsRatio, o.Confidence, o.Slow, nil}
	if a := o.A50; a != nil {
		j.A50 = &a50JSON{
			Interval: present(strictjson.Duration(a.Interval)), BaseEjectionTime: present(strictjson.Duration(a.BaseEjectionTime)),
			MaxEjectionTime: present(strictjson.Duration(a.MaxEjectionTime)), MaxEjectionPercent: present(a.MaxEjectionPercent),
		}
		if s := a.SuccessRateEjection; s != nil {
			j.A50.SuccessRateEjection = &successRateJSON{present(s.StdevFactor), present(s.EnforcementPercentage),
				present(s.MinimumHosts), present(s.RequestVolume)}
		}
		if f := a.FailurePercentageEjection; f != nil {
			j.A50.FailurePercentageEjection = &failurePercentageJSON{present(f.Threshold),
				present(f.EnforcementPercentage), present(f.MinimumHosts), present(f.RequestVolume)}
		}
	}
	return json.Marshal(j)
}

// present is nil for what is to be absent from JSON.
func present[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// UnmarshalJSON implements [json.Unmarshaler]; fields that it does not know are an error.
func (o *Outliers) UnmarshalJSON(js []byte) error {
	var j outliersJSON
	if err := strictjson.Unmarshal(js, &j); err != nil {
		return strictjson.At("outliers", err)
	}
	*o = Outliers{Disabled: j.Disabled, DryRun: j.DryRun, Margin: j.Margin, OddsRatio: j.OddsRatio,
		Confidence: j.Confidence, Slow: j.Slow}
	if j.A50 == nil {
		return nil
	}
	a, err := j.A50.config()
	if err != nil {
		return fmt.Errorf("outliers.a50.%w", err)
	}
	o.A50 = a
	return nil
}

func (j *a50JSON) config() (*outlier.A50, error) {
	a := new(outlier.A50)
	var r reader
	a.Interval = time.Duration(given(&r, "interval", j.Interval))
	a.BaseEjectionTime = time.Duration(given(&r, "baseEjectionTime", j.BaseEjectionTime))
	a.MaxEjectionTime = time.Duration(given(&r, "maxEjectionTime", j.MaxEjectionTime))
	a.MaxEjectionPercent = given(&r, "maxEjectionPercent", j.MaxEjectionPercent)
	if s := j.SuccessRateEjection; s != nil {
		r.in = "successRateEjection."
		a.SuccessRateEjection = &outlier.SuccessRateEjection{
			StdevFactor:           given(&r, "stdevFactor", s.StdevFactor),
			EnforcementPercentage: given(&r, "enforcementPercentage", s.EnforcementPercentage),
			MinimumHosts:          given(&r, "minimumHosts", s.MinimumHosts),
			RequestVolume:         given(&r, "requestVolume", s.RequestVolume),
		}
	}
	if f := j.FailurePercentageEjection; f != nil {
		r.in = "failurePercentageEjection."
		a.FailurePercentageEjection = &outlier.FailurePercentageEjection{
			Threshold:             given(&r, "threshold", f.Threshold),
			EnforcementPercentage: given(&r, "enforcementPercentage", f.EnforcementPercentage),
			MinimumHosts:          given(&r, "minimumHosts", f.MinimumHosts),
			RequestVolume:         given(&r, "requestVolume", f.RequestVolume),
		}
	}
	return a, r.err
}

// reader reads values of which 0 is refused.
type reader struct {
	in  string // which section
	err error
}

func given[T comparable](r *reader, name string, v *T) T {
	var zero T
	if v == nil {
		return zero
	}
	if *v == zero && r.err == nil {
		r.err = fmt.Errorf("%s%s = 0, want more than 0 (without the field its default holds, without the section the "+
			"algorithm is off)", r.in, name)
	}
	return *v
}

// vigil is a validated Outliers that has something to do.
type vigil struct {
	config outlier.Config
	a50    *outlier.A50
	dryRun bool
	ejects bool // verdicts are put into effect
	always bool // the counters are looked at whether something has failed or not
}

// resolve returns nil if there is nothing to do.
func (o Outliers) resolve(j *judge) (*vigil, error) {
	v := &vigil{
		config: outlier.Config{Margin: o.Margin, OddsRatio: o.OddsRatio, Confidence: o.Confidence,
			MaxEjectedPercent: j.percent, Slow: o.Slow},
		a50: o.A50, dryRun: o.DryRun, ejects: !j.disabled && !o.DryRun, always: o.A50 != nil || o.Slow > 0,
	}
	if o.A50 != nil && (o.Margin != 0 || o.OddsRatio != 0 || o.Confidence != 0 || o.Slow != 0) {
		return nil, fmt.Errorf("outliers.a50 is set together with margin, oddsRatio, confidence or slow, " +
			"want either: A50 replaces the method that they belong to")
	}
	if o.A50 != nil && j.disabled && !o.DryRun && !o.Disabled {
		return nil, fmt.Errorf("outliers.a50 is set, but blacklist.disabled = true, want the blacklist on: it is what "+
			"ejects (with blacklist.failures = %d hardly any run does)", maxFailures)
	}
	if _, err := v.judge(nil); err != nil {
		return nil, fmt.Errorf("outliers.%s", strings.TrimPrefix(err.Error(), "outlier: ")) // the package's own name
	}
	if o.Disabled || !v.ejects && !v.dryRun && !v.times() {
		return nil, nil
	}
	return v, nil
}

// judge makes the detector.
func (v *vigil) judge(rand func() uint64) (outlier.Judge, error) {
	if v.a50 != nil {
		return outlier.NewA50(*v.a50, rand)
	}
	return outlier.New(v.config)
}

// times reports whether calls are to be timed.
func (v *vigil) times() bool { return v != nil && v.config.Slow > 0 }
