package server

import (
	"crypto/tls"
	"net"
	"sync"
	"weak"
)

// listener tells when grpc begins to accept and when it closes the listener, and can cut every connection.
//
// The first is the proof that the server serves, whatever the transport: from then on a connection that reaches the
// listener is answered. The last is for connections that are still in their handshake when the server stops. grpc
// waits for those before it closes any other, in GracefulStop and in Stop, up to its connection timeout of two
// minutes, so that one silent peer would keep every other call alive and the process from ending.
//
// Connections are not wrapped, since credentials and grpc itself look at their types. They are remembered by weak
// pointers, so that those which grpc has closed are forgotten with them; the list is swept when it has doubled.
// Safe for concurrent use.
type listener struct {
	net.Listener
	accepting func() // called once, at the first Accept, before it blocks
	closed    func() // called at the first Close
	onAccept  sync.Once
	onClose   sync.Once

	mu    sync.Mutex // guards what follows; nothing is closed under it
	conns []func() net.Conn
	sweep int // the length at which to sweep
	cut   bool
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	l.onAccept.Do(l.accepting)
	c, err := l.Listener.Accept()
	if err == nil && !l.remember(c) {
		_ = c.Close() // the server has been stopped; grpc finds a closed connection and drops it
	}
	return c, err
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.onClose.Do(l.closed)
	return l.Listener.Close()
}

// remember reports false if connections are not wanted any more.
func (l *listener) remember(c net.Conn) bool {
	var ref func() net.Conn
	switch c := c.(type) {
	case *net.TCPConn:
		ref = weakConn(c)
	case *net.UnixConn:
		ref = weakConn(c)
	case *tls.Conn:
		// What is below it, since tls.Conn's own Close may wait 5 s to say goodbye.
		tc := weakConn(c)
		ref = func() net.Conn {
			if c, ok := tc().(*tls.Conn); ok {
				return c.NetConn()
			}
			return nil
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if ref == nil || l.cut {
		return !l.cut
	}
	if len(l.conns) >= l.sweep {
		live := l.conns[:0]
		for _, r := range l.conns {
			if r() != nil {
				live = append(live, r)
			}
		}
		clear(l.conns[len(live):])
		l.conns = live
		l.sweep = max(64, 2*len(live))
	}
	l.conns = append(l.conns, ref)
	return true
}

// cutAll closes every connection, and those which are still to come.
func (l *listener) cutAll() {
	l.mu.Lock()
	l.cut = true
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	for _, r := range conns {
		if c := r(); c != nil {
			_ = c.Close() // closed twice is an error of no interest
		}
	}
}

func weakConn[T any, P interface {
	*T
	net.Conn
}](c P) func() net.Conn {
	w := weak.Make((*T)(c))
	return func() net.Conn {
		if p := w.Value(); p != nil {
			return P(p)
		}
		return nil
	}
}
