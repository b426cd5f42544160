package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/evenkeel/evenkeel/internal/probe"
)

const method = "/orders.Orders/Get"

// call has the interceptor handle a call.
func (l *Load) call(ctx context.Context, method string, h func() error) (err error) {
	_, err = l.UnaryServerInterceptor()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method},
		func(context.Context, any) (any, error) { return nil, h() })
	return err
}

// TestLoadCounts: a call is in flight while its handler runs, whatever ends it.
func TestLoadCounts(t *testing.T) {
	l := NewLoad(LoadConfig{Skip: func(m string) bool { return strings.HasSuffix(m, "/Watch") }})
	want := func(what string, n float64) {
		t.Helper()
		if got := l.figures().rif; got != n {
			t.Errorf("%s: %v in flight, want %v", what, got, n)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, h := range map[string]func() error{
		"success": func() error { return nil },
		"error":   func() error { return errors.New("no") },
		"panic":   func() error { panic("no") },
		"goexit":  func() error { runtime.Goexit(); return nil },
	} {
		for _, m := range []string{method, probe.Method, "/grpc.health.v1.Health/Check", "/orders.Orders/Watch"} {
			inside := 0.0
			if m == method {
				inside = 1
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				defer func() { _ = recover() }()
				_ = l.call(cancelled, m, func() error { want(name+" of "+m, inside); return h() })
			})
			wg.Wait()
			want("after "+name, 0)
			wg.Go(func() {
				defer func() { _ = recover() }()
				_ = l.StreamServerInterceptor()(nil, stream{ctx: cancelled}, &grpc.StreamServerInfo{FullMethod: m},
					func(any, grpc.ServerStream) error { want(name+" of stream "+m, inside); return h() })
			})
			wg.Wait()
			want("after a stream's "+name, 0)
		}
	}
}

type stream struct {
	grpc.ServerStream
	ctx context.Context
	md  *metadata.MD
}

func (s stream) Context() context.Context { return s.ctx }
func (s stream) SetTrailer(md metadata.MD) {
	if s.md != nil {
		*s.md = md
	}
}

// TestLoadLatency: what is recorded as one, and what is not.
func TestLoadLatency(t *testing.T) {
	for _, tt := range []struct {
		name string
		took time.Duration
		err  error
		want time.Duration // after five calls of 10 ms, and six of these
		eps  bool
	}{
		{"slower", 50 * time.Millisecond, nil, 50 * time.Millisecond, false},
		{"a wrong request", 2 * time.Millisecond, status.Error(codes.NotFound, "no"), 2 * time.Millisecond, false},
		{"failing fast", time.Millisecond, status.Error(codes.Unavailable, "no"), 10 * time.Millisecond, true},
		{"a plain error", time.Millisecond, errors.New("no"), 10 * time.Millisecond, true},
		{"given up early", time.Millisecond, status.Error(codes.Canceled, "no"), 10 * time.Millisecond, false},
		{"given up late", 60 * time.Millisecond, status.Error(codes.Canceled, "no"), 60 * time.Millisecond, false},
		{"out of time", 60 * time.Millisecond, status.Error(codes.DeadlineExceeded, "no"), 60 * time.Millisecond, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := NewLoad(LoadConfig{})
			takes := func(d time.Duration, err error) func() error {
				return func() error { time.Sleep(d); return err }
			}
			for range 5 {
				_ = l.call(t.Context(), method, takes(10*time.Millisecond, nil))
			}
			for range 6 {
				_ = l.call(t.Context(), method, takes(tt.took, tt.err))
			}
			f := l.figures()
			if got := time.Duration(f.latency); got != tt.want {
				t.Errorf("%s: the latency is %v, want %v", tt.name, got, tt.want)
			}
			if f.qps != 11 || (f.eps == 6) != tt.eps {
				t.Errorf("%s: %v a second, %v fail, want 11, and 6 if they are failures: %v", tt.name, f.qps, f.eps, tt.eps)
			}
		})
	}
}

// TestStreamIsNoLatency: nor is a stream that says nothing for an hour.
func TestStreamIsNoLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLoad(LoadConfig{})
		_ = l.call(t.Context(), method, func() error { time.Sleep(10 * time.Millisecond); return nil })
		var md metadata.MD
		err := l.StreamServerInterceptor()(nil, stream{ctx: t.Context(), md: &md}, &grpc.StreamServerInfo{FullMethod: method},
			func(any, grpc.ServerStream) error { time.Sleep(time.Hour); return nil })
		if f := l.figures(); err != nil || f.latency != 10e6 {
			t.Errorf("%v; the latency is %v, want the 10 ms of the call", err, time.Duration(f.latency))
		}
		if len(md.Get("endpoint-load-metrics-bin")) != 1 {
			t.Errorf("the trailer is %v, want one report", md)
		}
	})
}

// TestReportOnTheWire: gRPC's message reads what is written by hand.
func TestReportOnTheWire(t *testing.T) {
	for _, f := range []figures{{}, {rif: 3, latency: 5e6, qps: 1.5, eps: 0.25, utilization: 0.75}, {rif: math.MaxInt32, latency: 1e18}} {
		got := new(orcapb.OrcaLoadReport)
		if err := proto.Unmarshal(f.encode(), got); err != nil {
			t.Fatal(err)
		}
		want := &orcapb.OrcaLoadReport{RpsFractional: f.qps, Eps: f.eps, ApplicationUtilization: f.utilization,
			NamedMetrics: map[string]float64{"rif": f.rif, "latency_ns": f.latency}}
		if !proto.Equal(got, want) {
			t.Errorf("%+v is read as %v, want %v", f, got, want)
		}
	}
}

// TestUtilization that makes no sense is not reported.
func TestUtilization(t *testing.T) {
	for said, want := range map[float64]float64{0.5: 0.5, 1.7: 1.7, -1: 0, math.Inf(1): 0, math.NaN(): 0} {
		l := NewLoad(LoadConfig{Utilization: func() float64 { return said }})
		if got := l.figures().utilization; got != want {
			t.Errorf("the application says %v: %v is reported, want %v", said, got, want)
		}
	}
}

// TestRates are per second over the last ten.
func TestRates(t *testing.T) {
	const s = second
	for _, tt := range []struct {
		name         string
		calls        []int64 // when; negative for a failure
		now          int64
		done, failed float64
	}{
		{"nothing", nil, 100 * s, 0, 0},
		{"a single one is no flood", []int64{100 * s}, 100*s + 1, 1, 0},
		{"two seconds", []int64{100 * s, 101 * s, 101 * s, -102 * s}, 102 * s, 2, 0.5},
		{"old ones are forgotten", []int64{100 * s, 100 * s, 115 * s, -115 * s}, 115 * s, 2. / 9, 1. / 9},
		{"long after", []int64{100 * s, 101 * s}, 1000 * s, 0, 0},
		{"the clock was set back", []int64{100 * s, 99 * s, 99 * s}, 100*s + 1, 3, 0},
	} {
		var r rates
		for _, at := range tt.calls {
			r.count(max(at, -at), at < 0)
		}
		if done, failed := r.perSecond(tt.now); math.Abs(done-tt.done) > 1e-6 || math.Abs(failed-tt.failed) > 1e-6 {
			t.Errorf("%s: %v and %v failed a second, want %v, %v", tt.name, done, failed, tt.done, tt.failed)
		}
	}
}

// A server that tells its clients how busy it is.
func ExampleNewLoad() {
	load := NewLoad(LoadConfig{})
	s := grpc.NewServer(grpc.ChainUnaryInterceptor(load.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(load.StreamServerInterceptor()))
	load.Register(s)
	for name := range s.GetServiceInfo() {
		fmt.Println(name)
	}
	// Output: evenkeel.v1.Load
}
