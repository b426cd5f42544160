package server

import (
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"sync/atomic"

	orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/orca"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/evenkeel/evenkeel/internal/clock"
	"github.com/evenkeel/evenkeel/internal/estimate"
	"github.com/evenkeel/evenkeel/internal/probe"
)

// LoadConfig says what a [Load] reports beyond what it counts itself. Its zero value is fine.
type LoadConfig struct {
	// Utilization is the part of its capacity that the process uses, 1 for all; the balancer's strategy weighted can go by
	// it. It is called for each report, so it must be fast, and safe for concurrent use. Nil means that nothing is said
	// about it.
	Utilization func() float64
	// Skip says which methods ("/pkg.Service/Method") are no load, such as streams that are open for hours and mostly
	// silent. Nil means none. Health checks, reflection and probes never are.
	Skip func(method string) bool
}

// Load counts what a server is busy with and tells clients, so that those whose balancer listens (the strategies keel and
// prequal, and weighted by reports) send it what it can take. It needs two lines where the server is made, and one after:
//
//	load := server.NewLoad(server.LoadConfig{})
//	s := grpc.NewServer(grpc.ChainUnaryInterceptor(load.UnaryServerInterceptor()),
//		grpc.ChainStreamInterceptor(load.StreamServerInterceptor()))
//	load.Register(s)
//
// It reports how many requests are in flight, how long one takes that arrives now (the median of the latest that arrived
// when about as many were in flight), and how many end in a second, and fail, over the last 10 s. It does so in the trailer
// of every call, as gRPC's load reports travel (gRFC A51, "endpoint-load-metrics-bin", with the named metrics rif and
// latency_ns), and in answer to probes (the service evenkeel.v1.Load). Where grpc's own orca.CallMetricsServerOption is in
// use, it must come before, and the named metrics join its report.
//
// A call is in flight until its handler returns, however it ends: by a panic, or long after its caller has gone. A stream
// counts likewise, but how long it took is no latency. Failures are no latencies either, since failing fast is no speed;
// a call that was given up counts if it took longer than usual.
//
// A call costs a lock, held for less than a microsecond, and a few allocations for the trailer. Put the interceptors before
// those that turn calls away, so that what is turned away is not counted, or after, so that it is: as an error it makes
// balancers look elsewhere. It is safe for concurrent use, and needs no Close.
type Load struct {
	cfg      LoadConfig
	clock    clock.Clock
	inFlight atomic.Int64

	mu       sync.Mutex // guards what follows; nothing is called under it
	latency  estimate.Estimator
	finished rates
}

// NewLoad returns a Load that has seen nothing.
func NewLoad(cfg LoadConfig) *Load { return &Load{cfg: cfg, clock: clock.New()} }

// counts reports whether a method's calls are load.
func (l *Load) counts(method string) bool {
	service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	return !infrastructure(service) && (l.cfg.Skip == nil || !l.cfg.Skip(method))
}

// UnaryServerInterceptor counts calls and sends reports with their answers.
func (l *Load) UnaryServerInterceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if !l.counts(info.FullMethod) {
			return handler(ctx, req)
		}
		r := l.begin()
		defer r.end() // if the handler does not return
		reply, err := handler(ctx, req)
		r.done(ctx, err, true)
		l.attach(ctx, func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) }) // it fails if there is no call any more
		return reply, err
	}
}

// StreamServerInterceptor counts streams and sends reports at their ends.
func (l *Load) StreamServerInterceptor() grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if !l.counts(info.FullMethod) {
			return handler(srv, ss)
		}
		r := l.begin()
		defer r.end()
		err := handler(srv, ss)
		r.done(ss.Context(), err, false)
		l.attach(ss.Context(), ss.SetTrailer)
		return err
	}
}

// request is one that is in flight.
type request struct {
	l     *Load
	rif   int // when it arrived, without itself
	began int64
	ended bool
}

func (l *Load) begin() request {
	return request{l: l, rif: int(l.inFlight.Add(1)) - 1, began: l.clock.Now()}
}

// end counts it out, once.
func (r *request) end() {
	if !r.ended {
		r.ended = true
		r.l.inFlight.Add(-1)
	}
}

// done counts it out, and records how it ended.
func (r *request) done(ctx context.Context, err error, unary bool) {
	r.end()
	l, now := r.l, r.l.clock.Now()
	code := codeOf(ctx, err)
	took := now - r.began
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finished.count(now, failure(code))
	switch {
	case !unary:
	case code == codes.Canceled || code == codes.DeadlineExceeded:
		if took > l.latency.Median(r.rif, now) { // at least as long
			l.latency.Record(r.rif, took, now)
		}
	case !failure(code):
		l.latency.Record(r.rif, took, now)
	}
}

// codeOf is what the caller gets for a handler's error.
func codeOf(ctx context.Context, err error) codes.Code {
	if _, ok := status.FromError(err); !ok && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return status.FromContextError(ctx.Err()).Code()
	}
	return status.Code(err)
}

// failure reports whether a code speaks of the server rather than of the request.
func failure(c codes.Code) bool {
	switch c {
	case codes.Unknown, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Internal, codes.Unavailable, codes.DataLoss:
		return true
	}
	return false
}

// figures are a report.
type figures struct {
	rif, latency, qps, eps, utilization float64
}

func (l *Load) figures() figures {
	now, rif := l.clock.Now(), l.inFlight.Load()
	f := figures{rif: float64(rif)}
	if l.cfg.Utilization != nil {
		if u := l.cfg.Utilization(); u >= 0 && !math.IsInf(u, 1) {
			f.utilization = u
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f.latency = float64(l.latency.Median(int(rif), now))
	f.qps, f.eps = l.finished.perSecond(now)
	return f
}

// trailer is the metadata that gRPC's clients take a load report from (gRFC A51).
const trailer = "endpoint-load-metrics-bin"

// attach sends a report with the answer: two of them would make clients ignore both, so one that the application has begun
// is joined.
func (l *Load) attach(ctx context.Context, set func(metadata.MD)) {
	f := l.figures()
	if rec := orca.CallMetricsRecorderFromContext(ctx); rec != nil {
		rec.SetNamedMetric(probe.RIF, f.rif)
		rec.SetNamedMetric(probe.Latency, f.latency)
		return
	}
	set(metadata.MD{trailer: []string{string(f.encode())}})
}

// The fields of xds.data.orca.v3.OrcaLoadReport.
const (
	fieldQPS         = 6
	fieldEPS         = 7
	fieldNamed       = 8
	fieldUtilization = 9
)

// encode is an OrcaLoadReport on the wire. By hand it takes a tenth of the time of filling the message, with its map, in
// each call; a test has the message read it.
func (f *figures) encode() []byte {
	b := make([]byte, 0, 96)
	for _, v := range [...]struct {
		field protowire.Number
		value float64
	}{{fieldQPS, f.qps}, {fieldEPS, f.eps}, {fieldUtilization, f.utilization}} {
		if v.value != 0 {
			b = protowire.AppendFixed64(protowire.AppendTag(b, v.field, protowire.Fixed64Type), math.Float64bits(v.value))
		}
	}
	for _, v := range [...]struct {
		name  string
		value float64
	}{{probe.RIF, f.rif}, {probe.Latency, f.latency}} {
		b = protowire.AppendTag(b, fieldNamed, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(2+len(v.name)+1+8)) // a map entry: the key, with tag and length, and the value
		b = protowire.AppendString(protowire.AppendTag(b, 1, protowire.BytesType), v.name)
		b = protowire.AppendFixed64(protowire.AppendTag(b, 2, protowire.Fixed64Type), math.Float64bits(v.value))
	}
	return b
}

// Register adds the service that answers probes. Serve does not announce it, and no wrapper of this module limits it. An
// interceptor of yours that authenticates has to let its method pass, /evenkeel.v1.Load/Probe: a probe carries no metadata
// that interceptors of the client add. A client that is turned away says so in its log, and does without for a minute.
func (l *Load) Register(s grpc.ServiceRegistrar) { s.RegisterService(&loadService, prober{l}) }

// loadServer is the service.
type loadServer interface {
	probe(context.Context) (*orcapb.OrcaLoadReport, error)
}

type prober struct{ l *Load }

func (p prober) probe(context.Context) (*orcapb.OrcaLoadReport, error) {
	f := p.l.figures()
	return &orcapb.OrcaLoadReport{
		RpsFractional: f.qps, Eps: f.eps, ApplicationUtilization: f.utilization,
		NamedMetrics: map[string]float64{probe.RIF: f.rif, probe.Latency: f.latency},
	}, nil
}

var loadService = grpc.ServiceDesc{
	ServiceName: probe.Service,
	HandlerType: (*loadServer)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: probe.Name, Handler: handleProbe}},
}

func handleProbe(srv any, ctx context.Context, dec func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
	in := new(emptypb.Empty)
	if err := dec(in); err != nil {
		return nil, err
	}
	if interceptor == nil {
		return srv.(loadServer).probe(ctx)
	}
	return interceptor(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: probe.Method},
		func(ctx context.Context, _ any) (any, error) { return srv.(loadServer).probe(ctx) })
}
