package balancer_test

import (
	"context"
	"fmt"

	gbalancer "google.golang.org/grpc/balancer"

	"github.com/evenkeel/evenkeel/balancer"
	"github.com/evenkeel/evenkeel/internal/lbtest"
)

// Calls with a user's key go to the same instance, in every client, as long as that is there; then to the user's next
// one, while the others' keys stay where they are.
func ExampleHash() {
	user := func(name string, ids ...string) {
		ch := dial(balancer.Config{Strategy: balancer.Hash{}}, ids...)
		defer ch.close()
		for range 3 {
			ctx := balancer.WithHashKey(context.Background(), name)
			res, err := ch.cc.Picker().Pick(gbalancer.PickInfo{Ctx: ctx, FullMethodName: "/carts.Carts/Get"})
			if err != nil {
				fmt.Println(err)
				return
			}
			var n int
			fmt.Sscanf(res.SubConn.(*lbtest.SubConn).Addr, "10.0.0.%d:80", &n)
			fmt.Print(ids[n-1], " ")
			res.Done(gbalancer.DoneInfo{BytesSent: true, BytesReceived: true})
		}
		fmt.Println("for", name)
	}
	user("alice", "a", "b", "c", "d")
	user("bob", "a", "b", "c", "d")
	user("alice", "d", "c", "b") // another client, another order, and a is gone
	user("bob", "d", "c", "b")
	// Output:
	// a a a for alice
	// b b b for bob
	// d d d for alice
	// b b b for bob
}

// The key of calls that carry the user in their metadata anyway, in JSON as it stands in a service config.
func ExampleHash_metadata() {
	js, err := balancer.LoadBalancingConfig(balancer.Config{Strategy: balancer.Hash{Metadata: "x-user-id", MaxLoad: 1.5}})
	fmt.Println(string(js), err)

	_, err = balancer.LoadBalancingConfig(balancer.Config{Strategy: balancer.Hash{Metadata: "user-bin"}})
	fmt.Println(err)
	// Output:
	// {"evenkeel":{"strategy":{"hash":{"metadata":"x-user-id","maxLoad":1.5}}}} <nil>
	// evenkeel: strategy hash: metadata = "user-bin", want a name that does not end in "-bin"
}
