package balancer

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/evenkeel/evenkeel/internal/callctx"
)

// kindOf says what sort of call it is: what a wrapper said, else what the linked descriptors say, else unary.
// grpc-go's PickInfo does not tell.
func kindOf(call *callctx.Call, method string) callctx.Kind {
	if call != nil && call.Kind != callctx.UnknownKind {
		return call.Kind
	}
	if isStream(method) {
		return callctx.Stream
	}
	return callctx.Unary
}

// maxMethods bounds the memory of methodIsStream: a proxy passes on methods by the thousand.
const maxMethods = 4096

// methods remembers what the descriptors said: a map that is replaced, never changed, so that readers take no lock.
var methods struct {
	known atomic.Pointer[map[string]bool]
	mu    sync.Mutex // orders writers
}

// shortcuts are answers of methodIsStream by a few bytes of the method: comparing with one takes a quarter of the time of
// a lookup in the map, and most clients call few methods (BenchmarkPick of peak_ewma in bench). The first method of a
// place keeps it, so that two which share one do not take turns in allocating.
var shortcuts [64]atomic.Pointer[shortcut]

type shortcut struct {
	method string
	stream bool
}

// isStream is methodIsStream with a shortcut for the methods that were asked for first.
func isStream(method string) bool {
	n := len(method)
	if n == 0 {
		return false
	}
	place := &shortcuts[(n*7+int(method[n-1])+int(method[n/2]))%len(shortcuts)]
	s := place.Load()
	if s != nil && s.method == method {
		return s.stream
	}
	stream := methodIsStream(method)
	if s == nil {
		place.CompareAndSwap(nil, &shortcut{strings.Clone(method), stream})
	}
	return stream
}

// methodIsStream reports whether the linked protobuf descriptors know method ("/pkg.Service/Method") as a stream.
func methodIsStream(method string) bool {
	if known := methods.known.Load(); known != nil {
		if stream, ok := (*known)[method]; ok {
			return stream
		}
	}
	stream := lookUpStream(method)
	methods.mu.Lock()
	defer methods.mu.Unlock()
	next := make(map[string]bool)
	if known := methods.known.Load(); known != nil && len(*known) < maxMethods {
		maps.Copy(next, *known)
	}
	next[method] = stream
	methods.known.Store(&next)
	return stream
}

func lookUpStream(method string) bool {
	service, name, ok := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	if !ok {
		return false
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + name))
	if err != nil {
		return false
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	return ok && (m.IsStreamingClient() || m.IsStreamingServer())
}
