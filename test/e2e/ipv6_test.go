package e2e

import (
	"fmt"
	"testing"

	"github.com/legation-io/legation/test/e2e/world"
)

func TestCaptureServesWhereIPv6IsOff(t *testing.T) {
	t.Parallel()
	w := world.Start(t)
	node := w.Join("n1")
	here, there := newNamespace(t, w), newNamespace(t, w)
	// here's d1 becomes there's e0.
	here.ip("-n", here.name, "link", "set", "d1", "netns", there.name, "name", "e0")
	there.ip("-n", there.name, "link", "set", "e0", "up")
	here.ip("netns", "exec", here.name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
	here.ip("-n", here.name, "addr", "add", "10.213.8.2/24", "dev", "d0")
	there.ip("-n", there.name, "addr", "add", "10.213.8.1/24", "dev", "e0")
	w.Apply(world.Identity("bob", "n1", "unix:path:"+w.As("bob")) + world.Service("bob", "10.213.8.2", 8080, "bob"))
	node.Run("bob", here.enter(), []string{"--capture", "--inbound", "8080"}, w.As("bob"), "serve", "127.0.0.1:8080", "bob")
	leaf, err := there.presented("10.213.8.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(leaf.URIs); got != "["+world.ID("bob")+"]" {
		t.Errorf("%s is presented", got)
	}
}
