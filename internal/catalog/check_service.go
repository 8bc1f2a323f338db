package catalog

import (
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/legation-io/legation/api/v1alpha1"
)

func (c *checker) service(s *corev1.Service) {
	if t := s.Spec.Type; t == corev1.ServiceTypeExternalName || s.Spec.ExternalName != "" {
		c.problem("spec.type", "declare the endpoints with a WorkloadEntry or an EndpointSlice", "a Service of type ExternalName has no endpoints to authenticate")
		return
	}
	if len(s.Name) > 63 || !label.MatchString(s.Name) && s.Name != "" {
		c.problem("metadata.name", "use lower-case letters, digits and -, at most 63 (RFC 1123)", "%q is not a Service's name", s.Name)
	}
	if len(s.Spec.Ports) == 0 {
		c.problem("spec.ports", "add at least one, e.g. - port: 8080", "the Service has no ports")
	}
	names, numbers := map[string]bool{}, map[int32]bool{}
	for i, p := range s.Spec.Ports {
		at := "spec.ports[" + strconv.Itoa(i) + "]"
		c.port(at+".port", int64(p.Port))
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
			c.problem(at+".protocol", "leave out ports that are not TCP", "mutual TLS needs TCP, this is %s", p.Protocol)
		}
		if p.Name == "" && len(s.Spec.Ports) > 1 {
			c.problem(at+".name", "give each port a name", "a Service with several ports needs their names")
		}
		if p.Name != "" && !label.MatchString(p.Name) {
			c.problem(at+".name", "use lower-case letters, digits and -", "%q is not a port's name", p.Name)
		}
		if p.Name != "" && names[p.Name] {
			c.problem(at+".name", "choose another name", "port name %q is given twice", p.Name)
		}
		if numbers[p.Port] {
			c.problem(at+".port", "choose another port", "port %d is given twice", p.Port)
		}
		names[p.Name], numbers[p.Port] = true, true
		switch t := p.TargetPort; {
		case t.Type == intstr.Int && t.IntVal != 0:
			c.port(at+".targetPort", int64(t.IntVal))
		case t.Type == intstr.String && !label.MatchString(t.StrVal):
			c.problem(at+".targetPort", "write a port number, or the name of a port of the endpoints", "%q is not a port", t.StrVal)
		}
	}
	c.identityHeaders(s, names, numbers)
	c.labels("spec.selector", s.Spec.Selector)
	for i, a := range addressesOf(s) {
		if a != corev1.ClusterIPNone {
			c.address(addressPath(s, i), a)
		}
	}
	if s.Spec.ClusterIP != "" && len(s.Spec.ClusterIPs) > 0 && s.Spec.ClusterIPs[0] != s.Spec.ClusterIP {
		c.problem("spec.clusterIP", "make it "+s.Spec.ClusterIPs[0]+", or leave it out", "clusterIP and the first of clusterIPs differ")
	}
	c.ids(s)
}

// addressesOf are the virtual addresses of a Service, as typed.
func addressesOf(s *corev1.Service) []string {
	if len(s.Spec.ClusterIPs) > 0 {
		return s.Spec.ClusterIPs
	}
	if s.Spec.ClusterIP != "" {
		return []string{s.Spec.ClusterIP}
	}
	return nil
}

func addressPath(s *corev1.Service, i int) string {
	if len(s.Spec.ClusterIPs) > 0 {
		return "spec.clusterIPs[" + strconv.Itoa(i) + "]"
	}
	return "spec.clusterIP"
}

func (c *checker) port(at string, p int64) {
	if p < 1 || p > 65535 {
		c.problem(at, "write a port from 1 to 65535", "%d is not a port", p)
	}
}

func (c *checker) workloadEntry(w *v1alpha1.WorkloadEntry) {
	if w.Spec.Address == "" {
		c.problem("spec.address", "add address: the endpoint's IP address", "the WorkloadEntry has no address")
	} else {
		c.address("spec.address", w.Spec.Address)
	}
	for _, name := range sortedKeys(w.Spec.Ports) {
		c.port(join("spec.ports", name), int64(w.Spec.Ports[name]))
	}
	c.labels("spec.labels", w.Spec.Labels)
	if sa := w.Spec.ServiceAccount; sa != "" {
		if len(sa) > 253 || !subdomain.MatchString(sa) {
			c.problem("spec.serviceAccount", nameFix, "%q is not a service account's name", sa)
		}
		if _, both := w.Annotations[v1alpha1.AnnotationSPIFFEIDs]; both {
			c.problem("spec.serviceAccount", "keep serviceAccount or the annotation "+v1alpha1.AnnotationSPIFFEIDs,
				"two places say which identity is expected")
		}
	}
	c.ids(w)
}

func (c *checker) endpointSlice(s *discoveryv1.EndpointSlice) {
	if s.Labels[discoveryv1.LabelServiceName] == "" {
		c.problem("metadata.labels", "add the label "+discoveryv1.LabelServiceName+": <service>", "the EndpointSlice belongs to no Service")
	}
	switch s.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
	default:
		c.problem("addressType", "write addressType: IPv4 or IPv6", "addressType %q cannot be connected to", s.AddressType)
	}
	for i, p := range s.Ports {
		at := "ports[" + strconv.Itoa(i) + "]"
		if p.Port == nil {
			c.problem(at+".port", "give the port's number", "the port has no number")
		} else {
			c.port(at+".port", int64(*p.Port))
		}
		if p.Protocol != nil && *p.Protocol != "" && *p.Protocol != corev1.ProtocolTCP {
			c.problem(at+".protocol", "leave out ports that are not TCP", "mutual TLS needs TCP, this is %s", *p.Protocol)
		}
	}
	for i, e := range s.Endpoints {
		c.endpoint(fmt.Sprintf("endpoints[%d]", i), s, e)
	}
	c.ids(s)
}

func (c *checker) endpoint(at string, s *discoveryv1.EndpointSlice, e discoveryv1.Endpoint) {
	if len(e.Addresses) == 0 {
		c.problem(at+".addresses", "give the endpoint's address", "the endpoint has no address")
	}
	for i, a := range e.Addresses {
		path := at + ".addresses[" + strconv.Itoa(i) + "]"
		addr, ok := c.address(path, a)
		if ok && addr.Is4() != (s.AddressType == discoveryv1.AddressTypeIPv4) {
			c.problem(path, "put it into an EndpointSlice of its own address type", "%s is not of addressType %s", a, s.AddressType)
		}
	}
	if e.NodeName != nil && !nodeName(*e.NodeName) {
		c.problem(at+".nodeName", "use letters, digits, ., - and _", "%q is not a node's name", *e.NodeName)
	}
	if ref := e.TargetRef; ref != nil && ref.Kind == kindIdentity.name && ref.Namespace != "" && ref.Namespace != s.Namespace {
		c.problem(at+".targetRef.namespace", "leave it out", "an endpoint refers to an identity of its own namespace, not of %s", ref.Namespace)
	}
}

// identityHeaders checks the annotation that names ports.
func (c *checker) identityHeaders(s *corev1.Service, names map[string]bool, numbers map[int32]bool) {
	list, ok := s.Annotations[v1alpha1.AnnotationIdentityHeaders]
	if !ok || list == "true" {
		return
	}
	path := join("metadata.annotations", v1alpha1.AnnotationIdentityHeaders)
	for one := range strings.SplitSeq(list, ",") {
		one = strings.TrimSpace(one)
		number, err := strconv.ParseInt(one, 10, 32)
		if !names[one] && (err != nil || !numbers[int32(number)]) {
			c.problem(path, `write "true" for all ports, or names or numbers of spec.ports, separated by commas; without the annotation there are no such headers`,
				"%q is no port of this Service", one)
		}
	}
}
