// Package culvert runs the conformance suite of the Gateway API, as it is, against a mesh that is installed.
// `cargo xtask conformance` builds it and hands it its flags.
package culvert

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) {
	conformance.RunConformance(t)
}
