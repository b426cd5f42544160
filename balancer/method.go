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
	if methodIsStream(method) {
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
