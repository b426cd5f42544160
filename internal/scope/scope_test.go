package scope

import "testing"

func TestTable(t *testing.T) {
	table, err := New("all", map[string]string{
		"/shop.Orders/*": "orders", "/shop.Orders/Put": "put", "/grpc.health.v1.Health/Watch": "watch",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		method, want  string
		named, exempt bool
	}{
		{"/shop.Orders/Put", "put", true, false},
		{"/shop.Orders/Get", "orders", true, false},
		{"/shop.OrdersV2/Get", "all", false, false},
		{"/grpc.health.v1.Health/Check", "all", false, true},
		{"/grpc.health.v1.Health/Watch", "watch", true, false},
		{"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "all", false, true},
		{"", "all", false, false},
		{"nonsense", "all", false, false},
	} {
		got, named := table.For(row.method)
		if got != row.want || named != row.named {
			t.Errorf("For(%q) = %q, %v, want %q, %v", row.method, got, named, row.want, row.named)
		}
		if _, ok := table.Applies(row.method); ok == row.exempt {
			t.Errorf("Applies(%q) = %v", row.method, ok)
		}
	}
	if n := testing.AllocsPerRun(100, func() { table.Applies("/shop.Orders/Get") }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func TestStar(t *testing.T) {
	table, err := New(1, map[string]int{"*": 2})
	if err != nil {
		t.Fatal(err)
	}
	if got, named := table.For("/a/b"); got != 2 || named {
		t.Errorf("got %v, %v, want 2, false", got, named)
	}
}

func TestBadKeys(t *testing.T) {
	for _, key := range []string{"", "a", "/a", "/a/", "//b", "a/b", "/"} {
		if _, err := New(0, map[string]int{key: 1}); err == nil {
			t.Errorf("key %q was accepted", key)
		}
	}
}
