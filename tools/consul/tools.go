//go:build tools

// Package tools pins the Consul server that the tests run against. It is a module of its own so that nobody who
// imports the library downloads a server. Build it with
//
//	go build -trimpath -o ../bin/consul github.com/hashicorp/consul
//
// in this directory; the import below only keeps the requirement in go.mod.
package tools

import _ "github.com/hashicorp/consul"
