package breaker

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// answer is a fallback that fills a StringValue.
func answer(_ context.Context, _ string, _, reply any, _ error) error {
	reply.(*wrapperspb.StringValue).Value = "from the fallback"
	return nil
}

func TestFallback(t *testing.T) {
	other := errors.New("another")
	for name, x := range map[string]struct {
		p     Policy
		opts  []grpc.CallOption
		err   error // what the call ends with
		reply string
		want  error
	}{
		"a failure is answered":      {Policy{Fallback: answer}, nil, errDown, "from the fallback", nil},
		"no failure, no fallback":    {Policy{Fallback: answer}, nil, nil, "", nil},
		"business errors are not":    {Policy{Fallback: answer}, nil, endings["notfound"], "", endings["notfound"]},
		"the call's own":             {Policy{}, []grpc.CallOption{WithFallback(answer)}, errDown, "from the fallback", nil},
		"nil changes nothing":        {Policy{Fallback: answer}, []grpc.CallOption{WithFallback(nil)}, errDown, "from the fallback", nil},
		"not in a dry run":           {Policy{Fallback: answer, DryRun: true}, nil, errDown, "", errDown},
		"not when bypassed":          {Policy{Fallback: answer}, []grpc.CallOption{Bypass()}, errDown, "", errDown},
		"it may return an error":     {Policy{Fallback: func(context.Context, string, any, any, error) error { return other }}, nil, errDown, "", other},
		"it is told what went wrong": {Policy{Fallback: func(_ context.Context, _ string, _, _ any, err error) error { return err }}, nil, errDown, "", errDown},
	} {
		r := newRig(t, Config{Policy: x.p})
		var reply wrapperspb.StringValue
		got := r.unaryClient(t.Context(), method, nil, &reply, nil,
			func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error { return x.err }, x.opts...)
		if got != x.want || reply.Value != x.reply {
			t.Errorf("%s: %v with %q, want %v with %q", name, got, reply.Value, x.want, x.reply)
		}
	}
}

// TestFallbackWhenOpen: a call that is turned away is answered, and the answer counts nowhere.
func TestFallbackWhenOpen(t *testing.T) {
	r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1, Fallback: answer}})
	for range 3 {
		var reply wrapperspb.StringValue
		if err := r.unaryClient(t.Context(), method, nil, &reply, nil, fails); err != nil || reply.Value == "" {
			t.Errorf("%v with %q, want an answer", err, reply.Value)
		}
	}
	if s := r.one(); s.Phase != Open || s.Rejected != 2 || s.Successes != 0 {
		t.Errorf("%v with %d successes, want open, 2 turned away, no success", s, s.Successes)
	}
}

// TestFallbackRecursion: a fallback that calls the same method gets no fallback of its own.
func TestFallbackRecursion(t *testing.T) {
	var r *rig
	asked := 0
	r = newRig(t, Config{Policy: Policy{Fallback: func(ctx context.Context, m string, req, reply any, err error) error {
		asked++
		return r.unaryClient(ctx, m, req, reply, nil, fails)
	}}})
	if err := r.unaryClient(t.Context(), method, nil, nil, nil, fails); err != errDown || asked != 1 {
		t.Errorf("%v after %d questions, want the inner call's error after 1", err, asked)
	}
	if s := r.one(); s.Failures != 2 {
		t.Errorf("%d failures, want 2: the inner call counts as well", s.Failures)
	}
}

// TestFallbackFails: everybody between sees a failure, and the application gets the reply.
func TestFallbackFails(t *testing.T) {
	r := newRig(t, Config{Policy: Policy{ConsecutiveFailures: 1, Fallback: answer, FallbackFails: true}})
	accept := AcceptFallback()
	for i, private := range []bool{false, true, false, true} {
		var between error
		var reply wrapperspb.StringValue
		err := accept(t.Context(), method, nil, &reply, nil,
			func(ctx context.Context, m string, req, rep any, cc *grpc.ClientConn, opts ...grpc.CallOption) error {
				if private { // as a hedge does
					rep = new(wrapperspb.StringValue)
				}
				between = r.unaryClient(ctx, m, req, rep, cc, fails, opts...)
				return between
			})
		if err != nil || reply.Value != "from the fallback" {
			t.Errorf("call %d: the application got %v with %q", i, err, reply.Value)
		}
		var f *FallbackError
		var e *Error
		if !errors.As(between, &f) || status.Code(between) != codes.Unavailable {
			t.Errorf("call %d: in between was %v, want a *FallbackError that is UNAVAILABLE", i, between)
		}
		if turned := errors.As(between, &e); turned != (i > 0) {
			t.Errorf("call %d: an *Error inside: %v, want %v", i, turned, i > 0)
		}
	}
	if err := accept(t.Context(), method, nil, nil, nil, fails); err != errDown {
		t.Errorf("without a fallback: %v, want the error as it was", err)
	}
	foreign := func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
		return &FallbackError{Reply: "no message", Err: errors.New("plain")}
	}
	if err := accept(t.Context(), method, nil, new(wrapperspb.StringValue), nil, foreign); status.Code(err) != codes.Unknown {
		t.Errorf("with a reply that cannot be copied: %v, want the error", err)
	}
}

// TestServerFallback: the reply is made from the linked descriptor; where there is none, and where the reply could
// not travel, the error stays.
func TestServerFallback(t *testing.T) {
	const check = "/grpc.health.v1.Health/Check"
	healthy := func(_ context.Context, _ string, _, reply any, _ error) error {
		reply.(*healthpb.HealthCheckResponse).Status = healthpb.HealthCheckResponse_SERVING
		return nil
	}
	refuses := func(context.Context, string, any, any, error) error { return status.Error(codes.Aborted, "no") }
	for name, x := range map[string]struct {
		method string
		p      Policy
		want   codes.Code
	}{
		"answered":            {check, Policy{Fallback: healthy}, codes.OK},
		"refuses":             {check, Policy{Fallback: refuses}, codes.Aborted},
		"FallbackFails":       {check, Policy{Fallback: healthy, FallbackFails: true}, codes.Unavailable},
		"no descriptor":       {method, Policy{Fallback: healthy}, codes.Unavailable},
		"a name of no method": {"/grpc.health.v1/Health", Policy{Fallback: healthy}, codes.Unavailable},
	} {
		x.p.ConsecutiveFailures = 1
		r := newRig(t, Config{Methods: map[string]Policy{x.method: x.p}})
		for i := range 2 { // a failure, then a call that is turned away
			reply, err := r.unaryServer(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: x.method},
				func(context.Context, any) (any, error) { return nil, errDown })
			m, ok := reply.(*healthpb.HealthCheckResponse)
			if status.Code(err) != x.want || ok != (x.want == codes.OK) || ok && m.Status != healthpb.HealthCheckResponse_SERVING {
				t.Errorf("%s, call %d: %v, %v, want %v", name, i, reply, err, x.want)
			}
		}
		if s := r.one(); s.Phase != Open || s.Rejected != 1 {
			t.Errorf("%s: %v, want open", name, s)
		}
	}
}
