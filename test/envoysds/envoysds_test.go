package envoysds

import "testing"

func TestHandWrittenConfigurationsWorkAsTheyStand(t *testing.T) {
	r := newRig(t)
	r.Apply(r.example("identities.yaml"))
	r.backend()
	r.web()
	r.works("mutual TLS works between the two")
}
