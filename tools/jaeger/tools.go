//go:build tools

// Package tools pins the Jaeger server that the trace example and its test run against. It is a module of its own so
// that nobody who imports the library downloads a server. Build it with
//
//	go build -trimpath -o ../bin/jaeger github.com/jaegertracing/jaeger/cmd/all-in-one
//
// in this directory; the import below only keeps the requirement in go.mod. The binary has no web pages: Jaeger's own
// build embeds them from another repository. Its query API has everything that the pages show.
package tools

import _ "github.com/jaegertracing/jaeger/cmd/all-in-one"
