package beacon

import (
	"testing"

	"google.golang.org/grpc/attributes"
)

func TestBeacon(t *testing.T) {
	var b, other Beacon
	attrs := Put(attributes.New("other", "value"), &b)
	if b.Lit() {
		t.Error("lit before anybody lit it")
	}
	Light(nil)
	Light(attributes.New("other", "value"))
	Light(Put(nil, nil))
	Light(Put(nil, &other))
	if b.Lit() || !other.Lit() {
		t.Errorf("lit %t, the other %t; want false, true", b.Lit(), other.Lit())
	}
	Light(attrs)
	Light(attrs)
	if !b.Lit() || attrs.Value("other") != "value" {
		t.Errorf("lit %t, other attributes %v; want true, value", b.Lit(), attrs.Value("other"))
	}
}
