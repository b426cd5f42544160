package breaker

import (
	"context"
	"math"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/evenkeel/evenkeel/internal/clock"
)

const method = "/a.B/C"

var errDown = status.Error(codes.Unavailable, "down")

func fails(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
	return errDown
}

// rig is one Breakers with what it told.
type rig struct {
	*Breakers
	t        *testing.T
	draw     uint64 // what chance says: 0 is let through by every ramp
	mu       sync.Mutex
	told     []string
	rejected []*Error
}

// newRig makes breakers that note their events.
func newRig(t *testing.T, c Config) *rig {
	t.Helper()
	r := &rig{t: t}
	r.listen(&c)
	var err error
	if r.Breakers, err = newBreakers(c, clock.New(), func() uint64 { return r.draw }); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) listen(c *Config) {
	c.OnStateChange = func(e StateChange) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.told = append(r.told, e.From.String()+">"+e.To.String())
	}
	c.OnReject = func(e *Error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.rejected = append(r.rejected, e)
	}
}

// events is what was told since the last time.
func (r *rig) events() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := strings.Join(r.told, " ")
	r.told = nil
	return s
}

// one is the state of the only breaker.
func (r *rig) one() BreakerState {
	r.t.Helper()
	s := r.State()
	if len(s.Breakers) != 1 {
		r.t.Fatalf("%d breakers, want 1: %v", len(s.Breakers), s.Breakers)
	}
	return s.Breakers[0]
}

// idle fails the test if a call is still counted.
func (r *rig) idle() {
	r.t.Helper()
	for _, s := range r.State().Breakers {
		if s.InFlight != 0 {
			r.t.Errorf("%v, want nothing in flight", s)
		}
	}
}

// call makes a call that takes a while and ends with err, and tells whether it was let through.
func (r *rig) call(err error, takes time.Duration, opts ...grpc.CallOption) (passed bool, got error) {
	got = r.unaryClient(context.Background(), method, nil, nil, nil,
		func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
			passed = true
			if takes > 0 {
				select {
				case <-time.After(takes):
				case <-ctx.Done():
					return status.FromContextError(ctx.Err()).Err()
				}
			}
			return err
		}, opts...)
	return passed, got
}

// step is a line of a scenario: at a time, calls of one kind, one after another, and what is seen then.
type step struct {
	at    time.Duration
	n     int    // how many calls; 0 means 1
	event string // a code's name, or "slow" for a success that takes 1 s, or "" for no call
	want  string // "passed" or "turned away", and the phase afterwards
	told  string // the events since the last step
}

var endings = map[string]error{
	"ok": nil, "slow": nil,
	"down":      errDown,
	"unknown":   status.Error(codes.Unknown, "a plain error"),
	"notfound":  status.Error(codes.NotFound, "no such thing"),
	"exhausted": status.Error(codes.ResourceExhausted, "later"),
	"canceled":  status.Error(codes.Canceled, "gone"),
}

// play runs the scenario in virtual time.
func play(t *testing.T, c Config, draw uint64, steps []step) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, c)
		r.draw = draw
		began := time.Now()
		for i, s := range steps {
			time.Sleep(s.at - time.Since(began))
			got := "passed"
			for range max(s.n, 1) {
				err, ok := endings[s.event]
				if !ok {
					if s.event != "" {
						t.Fatalf("step %d: no event %q", i, s.event)
					}
					got = "nothing"
					break
				}
				var takes time.Duration
				if s.event == "slow" {
					takes = time.Second
				}
				if passed, _ := r.call(err, takes); !passed {
					got = "turned away"
				}
			}
			got += ", " + r.phase().String()
			if told := r.events(); got != s.want || told != s.told {
				t.Errorf("step %d at %v, %s: %s, told %q, want %s, told %q", i, s.at, s.event, got, told, s.want, s.told)
			}
		}
		r.idle()
	})
}

// phase is the only breaker's, as it stands without being brought up to date.
func (r *rig) phase() Phase {
	for b := range r.index.Load().all() {
		return b.last.Load().phase
	}
	return Closed
}

const never = math.MaxUint64 // a draw that no ramp lets through before its end

var insecureCreds = insecure.NewCredentials()
