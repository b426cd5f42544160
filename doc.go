// Package evenkeel makes a plain grpc-go client keep calling the right, healthy instance of a service.
//
// It is a library of small packages around an ordinary *grpc.ClientConn. There is no sidecar, no control plane, no
// generated code and no type that stands between an application and gRPC. This package has no code; start with the
// one that answers your question:
//
//   - Where are the instances? [github.com/evenkeel/evenkeel/resolver] follows a
//     [github.com/evenkeel/evenkeel/registry] and serves its last good answer through an outage.
//   - Which one gets this call? [github.com/evenkeel/evenkeel/balancer] is one gRPC policy, named evenkeel, with a
//     choice of strategies. It takes instances that fail out of service, and lets them back in on trial.
//   - Which ones may? [github.com/evenkeel/evenkeel/filters]: by label, version, zone or service, for one call or
//     for all of them. A canary is one line in a handler.
//   - Was that the instance's fault? [github.com/evenkeel/evenkeel/outcome] is the one definition of failure.
//   - How does a server come and go without a failed call? [github.com/evenkeel/evenkeel/server] announces it once
//     it really serves, and drains it before it stops.
//
// An application adopts all of the client side in one dial option:
//
//	conn, err := grpc.NewClient("lb:///orders",
//		grpc.WithResolvers(resolver.NewBuilder(reg,
//			resolver.WithServiceConfig(balancer.ServiceConfig(balancer.Config{})))),
//		grpc.WithTransportCredentials(creds))
//
// The life of one call: the balancer's picker takes its current snapshot of the connected instances, narrows it to
// those that match the call's filter and are neither blacklisted nor draining, lets the strategy choose among them,
// and counts the call as in flight on the one chosen. When the call ends, its outcome is recorded there. None of this
// takes a lock that another instance's calls need, nor depends on how many instances there are.
//
// Do not use it where a mesh already balances each call: two balancers in a row see each other's decisions as
// weather. And with a single instance it has nothing to choose.
package evenkeel
