// Package conformance shows that the wrappers leave gRPC what it is, whichever of them are in the chain.
//
// There is no code here, only tests. They take one service with a method of each kind (unary, server-, client- and
// bidirectional streaming), real grpc servers and a real client over connections in memory, the registry in memory, and
// virtual time (testing/synctest), so that deadlines and waits are exact to the nanosecond.
//
// # The table of semantics
//
// rows_test.go has one table: status codes and details, headers and trailers, deadlines, cancellation, large
// messages, metadata, compression and the like. Each row is run without a wrapper, and then with every combination of
// trace, ratelimit, retry and breaker on and off, on the client, on the server and on both, for each kind of call, under
// the policy evenkeel and under round_robin. What a caller and a handler can see of the call is written down
// (outcome, in caller_test.go), and must be the same as without a wrapper: the code, the message, the details, header and
// trailer, the peer, the replies, what grpc.OnFinish was told and how often, how often a handler ran, its metadata and
// deadline, and how long it all took. What a wrapper adds on purpose is named in one place, additions.
//
// After the rows the wrappers' own books must be balanced: no span open, no call in flight in a breaker.
//
// # Composition and cells
//
// compose_test.go shows what the order of the chain is for: one call takes one token of the limiter while each attempt
// asks the breaker; an open breaker is not retried; a retry goes to another endpoint. cells_test.go reads the table of
// docs/wrappers.md, in which each feature has a cell for each kind of call and each policy, and tries every cell: what
// the table says is what happens, and a row without a test, or a test without a row, is an error. features_test.go has
// more of the probes.
//
// A new wrapper, or a new feature of one, belongs into rig_test.go (the chain) and into the table of the document.
package conformance
