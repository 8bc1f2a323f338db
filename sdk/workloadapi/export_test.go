package workloadapi

// What tests outside look at.
var (
	ParseForTest           = parse
	ParseJWTBundlesForTest = parseJWTBundles
)
