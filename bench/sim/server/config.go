package server

import (
	"fmt"
	"math"
	"time"
)

// Config is one server. Its zero value is a process with one core of its own and nothing more.
type Config struct {
	// Cores are what it is guaranteed, its allocation. 0 means 1, or Workers if there are any.
	Cores float64
	// Workers, if not 0, makes it a queue: so many requests are worked on, the others wait in order of arrival.
	Workers int
	// Queue is how many may wait; one more is rejected. 0 means any number.
	Queue int
	// Speed is how fast a core is: a request of work w takes w/Speed on a core of its own. 0 means 1.
	Speed float64
	// Window is how far back the reported utilization and rates reach; 0 means 10 s.
	Window time.Duration
	// Throttle is what the machine does to it when it wants more than there is; zero is nothing but to share what there is.
	Throttle Throttle
	// Samples is how many latencies make the median that it reports; 0 means as many as package server's Load takes.
	Samples int
	// ProbeCost is the processor time that answering a probe takes; 0 means 50 µs, negative none.
	ProbeCost time.Duration
}

// Throttle is the isolation of a busy machine: a process that has wanted more than its machine can give for some time
// is held to what it is guaranteed, or less, until it is content with that. It is what makes an overload on a crowded
// machine so much worse than the cores that are missing.
type Throttle struct {
	// After is how long it may want more; 0 means for ever, and so no throttle.
	After time.Duration
	// To is the part of its allocation that it is then held to; 0 means 1.
	To float64
}

// Faults are what a server does wrong to some of its requests.
type Faults struct {
	// Fail is the part of requests that fail FailAfter they came, without any work.
	Fail      float64
	FailAfter time.Duration
	// Slow is the part of the others that need SlowBy times their work.
	Slow, SlowBy float64
}

// Validate reports the first thing in a Config that makes no sense.
func (c Config) Validate() error {
	bad := func(v float64) bool { return !(v >= 0) || math.IsInf(v, 0) }
	switch {
	case bad(c.Cores):
		return fmt.Errorf("cores = %v, want more than 0, or 0 for the default", c.Cores)
	case bad(c.Speed):
		return fmt.Errorf("speed = %v, want more than 0, or 0 for 1", c.Speed)
	case c.Workers < 0:
		return fmt.Errorf("workers = %d, want 1 or more, or 0 for cores that all share", c.Workers)
	case c.Queue < 0:
		return fmt.Errorf("queue = %d, want 1 or more, or 0 for any number", c.Queue)
	case c.Window < 0:
		return fmt.Errorf("window = %v, want more than 0, or 0 for 10s", c.Window)
	case c.Throttle.After < 0 || bad(c.Throttle.To):
		return fmt.Errorf("throttle = %+v, want 0 or more", c.Throttle)
	case c.Samples < 0:
		return fmt.Errorf("samples = %d, want 1 or more, or 0 for those of server.Load", c.Samples)
	}
	return nil
}

// Validate reports the first thing in Faults that makes no sense.
func (f Faults) Validate() error {
	part := func(v float64) bool { return v >= 0 && v <= 1 }
	switch {
	case !part(f.Fail):
		return fmt.Errorf("fail = %v, want a part from 0 to 1", f.Fail)
	case f.FailAfter < 0:
		return fmt.Errorf("failAfter = %v, want 0 or more", f.FailAfter)
	case !part(f.Slow):
		return fmt.Errorf("slow = %v, want a part from 0 to 1", f.Slow)
	case f.Slow > 0 && !(f.SlowBy > 0) || math.IsInf(f.SlowBy, 0):
		return fmt.Errorf("slowBy = %v, want more than 0", f.SlowBy)
	}
	return nil
}
