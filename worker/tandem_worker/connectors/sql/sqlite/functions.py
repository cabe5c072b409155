"""The functions of SQLite that jobs may call: the documented ones that compute and do no more.

Left out are those that load code or hand out addresses (`load_extension`, `fts3_tokenizer`), that
tell what the library is made of, and whatever an extension of the system may add.
"""

_CORE = """
abs changes char coalesce concat concat_ws format glob hex if ifnull iif instr last_insert_rowid
length like likelihood likely lower ltrim max min nullif octet_length printf quote random randomblob
replace round rtrim sign soundex sqlite_version substr substring total_changes trim typeof unhex
unicode unistr unistr_quote unlikely upper zeroblob subtype
"""
_DATES = """
current_date current_time current_timestamp date datetime julianday strftime time timediff unixepoch
"""
_AGGREGATES = """
avg count group_concat median percentile percentile_cont percentile_disc string_agg sum total
"""
_WINDOWS = """
cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number
"""
_MATHS = """
acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp floor ln log log10 log2 mod
pi pow power radians sin sinh sqrt tan tanh trunc
"""
_JSON = """
-> ->> json json_array json_array_insert json_array_length json_error_position json_extract
json_group_array json_group_object json_insert json_object json_patch json_pretty json_quote
json_remove json_replace json_set json_type json_valid jsonb jsonb_array jsonb_array_insert
jsonb_extract jsonb_group_array jsonb_group_object jsonb_insert jsonb_object jsonb_patch
jsonb_remove jsonb_replace jsonb_set
"""
# Of full-text and spatial indexes.
_INDEXES = """
bm25 highlight matchinfo match offsets optimize snippet geopoly_area geopoly_bbox
geopoly_blob geopoly_ccw geopoly_contains_point geopoly_json geopoly_overlap geopoly_regular
geopoly_svg geopoly_within geopoly_xform rtreecheck rtreedepth
"""

FUNCTIONS = frozenset(f"{_CORE}{_DATES}{_AGGREGATES}{_WINDOWS}{_MATHS}{_JSON}{_INDEXES}".split())
