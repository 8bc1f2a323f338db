package policy

import (
	"slices"
	"strings"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
)

// allowed are the built-in functions that a policy may call. A function is
// here when its answer follows from its arguments alone and its cost is
// bounded by their size (DESIGN: deny by default; a new OPA adds nothing).
// Left out on purpose:
//
//   - network and host: http.send, net.lookup_ip_addr, opa.runtime, json.match_schema
//     and json.verify_schema (remote references), providers.aws.*
//   - random: rand.intn, uuid.rfc4122
//   - identity: io.jwt.*, crypto.x509.*, crypto.parse_private_keys, graphql.*: peers and tokens are verified
//     before a policy is asked, and an unverified claim must not look like a verified one
//   - code: rego.parse_module, rego.metadata.*, trace
//   - cost that arguments do not bound: regex.globs_match, regex.template_match, graph.reachable_paths,
//     net.cidr_expand, strings.render_template, yaml.unmarshal (aliases), units.*, bits.* (shifts),
//     ceil, floor, round, rem and format_int (a number such as 1e999999999 becomes all its digits)
var allowed = strings.Fields(`
	and or minus plus mul div eq equal neq gt gte lt lte assign internal.member_2 internal.member_3
	internal.print print internal.template_string
	abs count sum product max min sort any all
	array.concat array.flatten array.reverse array.slice
	intersection union set_diff
	object.filter object.get object.keys object.remove object.subset object.union object.union_n
	json.filter json.remove json.patch json.is_valid json.marshal json.unmarshal
	cast_array cast_boolean cast_null cast_object cast_set cast_string
	is_array is_boolean is_null is_number is_object is_set is_string type_name to_number
	concat contains endswith indexof indexof_n lower replace split startswith
	strings.any_prefix_match strings.any_suffix_match strings.count strings.replace_n strings.reverse strings.split_n
	substring trim trim_left trim_prefix trim_right trim_space trim_suffix upper sprintf
	regex.match regex.find_n regex.find_all_string_submatch_n regex.replace regex.split re_match
	glob.match glob.quote_meta
	base64.decode base64.encode base64.is_valid base64url.decode base64url.encode base64url.encode_no_pad hex.decode hex.encode
	urlquery.decode urlquery.decode_object urlquery.encode urlquery.encode_object uri.parse uri.is_valid
	crypto.sha256 crypto.hmac.equal crypto.hmac.sha256 uuid.parse
	net.cidr_contains net.cidr_contains_matches net.cidr_intersects net.cidr_is_valid net.cidr_overlap
	numbers.range numbers.range_step semver.compare semver.is_valid graph.reachable walk
	time.add_date time.clock time.date time.diff time.format time.now_ns time.parse_duration_ns time.parse_ns
	time.parse_rfc3339_ns time.weekday`)

// Capabilities is what the compiler is told that exists: the built-in
// functions of the allow-list, and no host that may be connected to. The same
// is used wherever Legation compiles a policy. The result must not be changed.
func Capabilities(regoV0 bool) *ast.Capabilities {
	if regoV0 {
		return capabilitiesV0()
	}
	return capabilitiesV1()
}

var (
	capabilitiesV0 = sync.OnceValue(func() *ast.Capabilities { return restrict(ast.RegoV0) })
	capabilitiesV1 = sync.OnceValue(func() *ast.Capabilities { return restrict(ast.RegoV1) })
)

func restrict(v ast.RegoVersion) *ast.Capabilities {
	all := ast.CapabilitiesForThisVersion(ast.CapabilitiesRegoVersion(v))
	out := &ast.Capabilities{FutureKeywords: all.FutureKeywords, Features: all.Features, AllowNet: []string{}}
	for _, b := range all.Builtins {
		if slices.Contains(allowed, b.Name) {
			out.Builtins = append(out.Builtins, b)
		}
	}
	return out
}

// regoVersion is OPA's name of a version.
func regoVersion(v0 bool) ast.RegoVersion {
	if v0 {
		return ast.RegoV0
	}
	return ast.RegoV1
}
