package breaker

import (
	"cmp"
	"fmt"
	"time"
)

// Hystrix is a command's configuration as hystrix-go has it, with its JSON names and its units, so that an
// existing file can be read and turned into a [Policy]. Zero fields have Hystrix's defaults.
type Hystrix struct {
	// Timeout of a call in milliseconds; 0 means 1000.
	Timeout int `json:"timeout"`
	// MaxConcurrentRequests is how many calls may be in flight; 0 means 10.
	MaxConcurrentRequests int `json:"max_concurrent_requests"`
	// RequestVolumeThreshold is how many calls must have been counted in 10 s; 0 means 20.
	RequestVolumeThreshold int `json:"request_volume_threshold"`
	// SleepWindow is how long the circuit stays open, in milliseconds; 0 means 5000.
	SleepWindow int `json:"sleep_window"`
	// ErrorPercentThreshold is the percentage of failures that opens it, up to 100; 0 means 50.
	ErrorPercentThreshold int `json:"error_percent_threshold"`
}

// Policy says the same as h: one breaker a method, the failure ratio over 10 s in steps of 1 s as the only
// criterion, one probe, and all calls at once when it succeeded. A probe may take as long as any call. The error
// names the field by its JSON name.
func (h Hystrix) Policy() (Policy, error) {
	for _, f := range []struct {
		name string
		n    int
		max  int64 // an int of 32 bits is too small for a year of milliseconds
	}{{"timeout", h.Timeout, maxDuration.Milliseconds()}, {"max_concurrent_requests", h.MaxConcurrentRequests, maxCount},
		{"request_volume_threshold", h.RequestVolumeThreshold, maxCount},
		{"sleep_window", h.SleepWindow, maxDuration.Milliseconds()},
		{"error_percent_threshold", h.ErrorPercentThreshold, 100}} {
		if f.n < 0 || int64(f.n) > f.max {
			return Policy{}, fmt.Errorf("breaker: %s = %d, want 0 to %d", f.name, f.n, f.max)
		}
	}
	timeout := time.Duration(cmp.Or(h.Timeout, 1000)) * time.Millisecond
	return Policy{
		ConsecutiveFailures: -1,
		FailureRatio:        float64(cmp.Or(h.ErrorPercentThreshold, 50)) / 100,
		MinCalls:            cmp.Or(h.RequestVolumeThreshold, 20),
		Window:              10 * time.Second,
		BucketPeriod:        time.Second,
		OpenFor:             time.Duration(cmp.Or(h.SleepWindow, 5000)) * time.Millisecond,
		Probes:              1,
		ProbeTimeout:        timeout,
		NoRamp:              true,
		MaxConcurrent:       cmp.Or(h.MaxConcurrentRequests, 10),
		Timeout:             timeout,
	}, nil
}
