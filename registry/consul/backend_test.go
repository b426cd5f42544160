package consul

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/evenkeel/evenkeel/registry"
)

// A real agent answers no query of a watch out of its streaming backend, which can lose instances (ADR-0004).
func TestWatchAvoidsTheStreamingBackend(t *testing.T) {
	t.Parallel()
	s := sharedServer(t)
	var mu sync.Mutex
	backends := make(map[string]int)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: strings.TrimPrefix(s.Addr(), "http://")})
	proxy.ModifyResponse = func(r *http.Response) error {
		if strings.Contains(r.Request.URL.Path, "/health/service/") {
			mu.Lock()
			defer mu.Unlock()
			backends[r.Header.Get("X-Consul-Query-Backend")]++
		}
		return nil
	}
	front := httptest.NewServer(proxy)
	r := newRegistry(t, Config{Address: front.URL})
	t.Cleanup(front.Close) // after the watch has ended, which has a query open
	rec := follow(t, r, "backend")
	rec.Await("an empty set", haveIDs())
	direct := newRegistry(t, Config{Address: s.Addr()})
	register(t, direct, "backend", registry.Instance{ID: "a", Addr: "192.0.2.1:80"})
	rec.Await("the first", haveIDs("a"))
	register(t, direct, "backend", registry.Instance{ID: "b", Addr: "192.0.2.2:80"})
	rec.Await("the second", haveIDs("a", "b"))
	mu.Lock()
	defer mu.Unlock()
	if n := backends["blocking-query"]; n < 3 || len(backends) != 1 {
		t.Errorf("answers by backend: %v, want 3 or more of blocking-query and no others", backends)
	}
}
