package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	gbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/connectivity"
	gresolver "google.golang.org/grpc/resolver"

	"github.com/evenkeel/evenkeel/filters"
	"github.com/evenkeel/evenkeel/registry"
)

// Pick times picks together with the ends of their calls, one after another.
func (r *Rig) Pick(b *testing.B, c Context) {
	infos, stop := c.calls(r.policy)
	defer stop()
	p := r.ch.Picker()
	b.ReportAllocs()
	b.ResetTimer()
	if err := r.calls(p, infos, b.N); err != nil {
		b.Fatal(err)
	}
}

// calls makes n calls, one after another.
func (r *Rig) calls(p gbalancer.Picker, infos []gbalancer.PickInfo, n int) error {
	if r.policy.Reporting {
		for i := range n {
			if _, err := r.reported(p, infos[i&(len(infos)-1)]); err != nil {
				return err
			}
		}
		return nil
	}
	for i := range n {
		if _, err := call(p, infos[i&(len(infos)-1)], &sent); err != nil {
			return err
		}
	}
	return nil
}

// PickParallel is Pick from as many goroutines as there are processors, each with contexts of its own.
func (r *Rig) PickParallel(b *testing.B, c Context) {
	p := r.ch.Picker()
	each := make([][]gbalancer.PickInfo, runtime.GOMAXPROCS(0))
	for i := range each {
		infos, stop := c.calls(r.policy)
		defer stop()
		each[i] = infos
	}
	var begun atomic.Int32
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		infos := each[begun.Add(1)-1]
		for i := 0; pb.Next(); i++ {
			at := i & (len(infos) - 1)
			if err := r.calls(p, infos[at:at+1], 1); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// Allocs is how many allocations a pick and its end make on average, without timing anything; 0 means fewer than one
// in so many picks. (Now and then a collection empties a pool, which is then filled again.)
func (r *Rig) Allocs(c Context, picks int) float64 {
	infos, stop := c.calls(r.policy)
	defer stop()
	p := r.ch.Picker()
	var failed error
	average := testing.AllocsPerRun(50, func() {
		if err := r.calls(p, infos, picks); err != nil {
			failed = err
		}
	})
	if failed != nil {
		panic(failed) // the rig was worn in by the same picks
	}
	return average / float64(picks)
}

// Share is the part of so many calls that the endpoint whose connection was made first gets.
func (r *Rig) Share(calls int) (float64, error) {
	ctx, stop := Context{}.New(r.policy)
	defer stop()
	first := 0
	for range calls {
		conn, err := call(r.ch.Picker(), gbalancer.PickInfo{Ctx: ctx, FullMethodName: method}, &sent)
		if err != nil {
			return 0, err
		}
		if conn.index == 0 {
			first++
		}
	}
	return float64(first) / float64(calls), nil
}

// Places makes a call with each key, and returns to which endpoint it went, by the order in which they were connected.
func (r *Rig) Places() ([]int, error) {
	infos, stop := Context{}.calls(r.policy)
	defer stop()
	places := make([]int, len(infos))
	for i, info := range infos {
		conn, err := call(r.ch.Picker(), info, &sent)
		if err != nil {
			return nil, err
		}
		places[i] = conn.index
	}
	return places, nil
}

// Use picks once with each of the first n filters of InFilters, so that the policy keeps candidate sets for them.
func (r *Rig) Use(n int) error {
	for i := range n {
		ctx := filters.NewContext(context.Background(), InFilters(i), service)
		if _, err := call(r.ch.Picker(), gbalancer.PickInfo{Ctx: ctx, FullMethodName: method}, &sent); err != nil {
			return fmt.Errorf("filter %v: %w", InFilters(i), err)
		}
	}
	return nil
}

// Converge times how long it takes from the first update of the resolver until the policy has published a picker
// over all n endpoints, with connections that are ready at once. The end is the moment at which that picker reached
// the channel, so waiting on purpose is part of the time; asking pickers whether they cover everything is not.
func Converge(b *testing.B, p Policy, n int) {
	all := p.state(Fleet(n))
	b.ReportAllocs()
	b.StopTimer()
	var total time.Duration
	for range b.N {
		r, err := newRig(p, false)
		if err != nil {
			b.Fatal(err)
		}
		runtime.GC() // what the previous round left is not this one's
		b.StartTimer()
		start := time.Now()
		if err := r.update(all); err != nil {
			b.Fatal(err)
		}
		done, err := r.covered(0, n)
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		total += done.at.Sub(start)
		r.Close()
	}
	b.ReportMetric(float64(total.Nanoseconds())/float64(b.N), "ns/op")
}

// Kind is what changes in a [Changer].
type Kind string

const (
	// State: the instance's health service says NOT_SERVING, or SERVING again. The connection stays.
	State Kind = "state"
	// Labels: the registry has another label for the instance, which takes it out of one of the filters in use, or
	// puts it back. The resolver sends the whole list, as it always does.
	Labels Kind = "labels"
)

// Changer makes one endpoint of many change back and forth. Make it with [NewChanger]; the caller closes it. It belongs
// to one goroutine.
type Changer struct {
	r     *Rig
	kind  Kind
	conn  *Conn
	lists [2]gresolver.State // after an even and an odd number of changes
	quiet time.Duration      // how long to leave the policy alone
	there bool               // the next change is there, not back
}

// NewChanger makes a rig of n endpoints with some filters in use, each of which one in ten of the endpoints meets and
// the changing one eight in all. Only evenkeel has filters.
func NewChanger(p Policy, n, inUse int, k Kind) (*Changer, error) {
	r, err := newRig(p, true)
	if err != nil {
		return nil, err
	}
	c := &Changer{r: r, kind: k, there: true}
	if err := c.prepare(n, inUse); err != nil {
		r.Close()
		return nil, fmt.Errorf("policy %s, n = %d: %w", p.Label, n, err)
	}
	return c, nil
}

// Close ends the policy.
func (c *Changer) Close() { c.r.Close() }

// Change times how long it takes from a change of the endpoint until the policy has published a picker that knows it.
// Changes come one at a time: before each, the policy is left alone until its window has ended, because what is asked
// here is what one change costs, not how many of a burst are put together.
func (c *Changer) Change(b *testing.B) {
	b.ReportAllocs()
	b.StopTimer()
	b.ResetTimer()
	for range b.N {
		<-time.After(c.quiet)
		b.StartTimer()
		if err := c.once(); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
	}
}

// quietFactor is how many times as long as a change of state took the policy is left alone before the next one: more
// than the tenfold that evenkeel's windows last (ADR-0007). An update of the resolver is published before it returns,
// window or not, and needs no pause.
const quietFactor = 12

func (c *Changer) prepare(n, inUse int) error {
	r := c.r
	// A registry makes all records anew. evenkeel's resolver hands on the one that it has where nothing in it changed, so
	// what reaches a policy is a new list with new endpoints, in which one record is new (TestUnchangedIsTheSame there).
	fleet := tagged(n)
	changed := tagged(1)[0]
	delete(changed.Labels, tag(0))
	other := pointers(fleet)
	other[0] = &changed
	c.lists = [2]gresolver.State{r.policy.state(fleet), r.policy.stateOf(other)}
	if err := r.update(c.lists[0]); err != nil {
		return err
	}
	if _, err := r.covered(0, n); err != nil {
		return err
	}
	for _, conn := range r.ch.conns {
		if conn.addr == fleet[0].Addr {
			c.conn = conn
		}
	}
	if c.conn == nil || c.conn.health == nil {
		return errors.New("the policy listens to nobody's health")
	}
	if r.policy.ours() {
		if err := r.Use(inUse); err != nil {
			return err
		}
	}
	for range 4 { // a few changes that nobody times say how long one takes
		<-time.After(20 * time.Millisecond)
		if err := c.once(); err != nil {
			return err
		}
	}
	return nil
}

// once makes a change, there or back, and returns when the picker that knows it is published.
func (c *Changer) once() error {
	there := c.there
	c.there = !there
	seq, start := c.r.ch.current().seq, time.Now()
	switch {
	case c.kind == State && there:
		c.conn.health(gbalancer.SubConnState{
			ConnectivityState: connectivity.TransientFailure, ConnectionError: errNotServing,
		})
	case c.kind == State:
		c.conn.health(gbalancer.SubConnState{ConnectivityState: connectivity.Ready})
	default:
		list := c.lists[0]
		if there {
			list = c.lists[1]
		}
		if err := c.r.update(list); err != nil {
			return err
		}
	}
	done, err := c.r.ch.await(seq, func(publication) bool { return true })
	if err != nil {
		return err
	}
	if c.quiet = time.Millisecond; c.kind == State {
		c.quiet += quietFactor * done.at.Sub(start)
	}
	return nil
}

var errNotServing = errors.New("NOT_SERVING")

// Memory measures how many bytes a policy holds for each of n endpoints that are connected, as the difference that
// it makes to a heap from which all garbage is gone. The channel is part of it: [ChannelOnly] measures that alone.
func Memory(b *testing.B, p Policy, n, inUse int) {
	var fleet []registry.Instance
	if inUse > 0 {
		fleet = tagged(n)
	} else {
		fleet = Fleet(n)
	}
	all := p.state(fleet)
	var total float64
	for range b.N {
		before := heap()
		r, err := newRig(p, true)
		if err != nil {
			b.Fatal(err)
		}
		if err := r.update(all); err != nil {
			b.Fatal(err)
		}
		if _, err := r.covered(0, n); err != nil {
			b.Fatal(err)
		}
		if p.ours() {
			if err := r.Use(inUse); err != nil {
				b.Fatal(err)
			}
		}
		r.ch.Answer() // a probe under way is no endpoint's
		total += float64(heap()) - float64(before)
		r.Close()
	}
	runtime.KeepAlive(all)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(total/float64(b.N)/float64(n), "B/endpoint")
}

// heap is the size of what is alive.
func heap() uint64 {
	for range 3 { // pools give up what they hold at the second collection
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
