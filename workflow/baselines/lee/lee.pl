# x = m + max(v - s^2, 0)/v (y - m), m and v the mean and variance of y in a window of 5 x 5.
# An npz file is a zip of .npy files: a header, then the numbers.
use strict;
use warnings;
use IO::Uncompress::Unzip qw($UnzipError);
use IO::Compress::Zip qw(:constants $ZipError);

my ( $observations, $restorations ) = @ARGV;
my $radius = 2;

my %arrays;    # name => [shape, bytes]
my $zip = IO::Uncompress::Unzip->new($observations) or die "$observations: $UnzipError\n";
do {
    my $name = $zip->getHeaderInfo->{Name} =~ s/\.npy$//r;
    my ( $npy, $part ) = ( '', '' );
    $npy .= $part while $zip->read( $part, 1 << 20 ) > 0;
    my $length = unpack 'v', substr $npy, 8, 2;
    my ($shape) = substr( $npy, 10, $length ) =~ /'shape': \(([^)]*)\)/;
    $arrays{$name} = [ [ $shape =~ /\d+/g ], substr $npy, 10 + $length ];
} while ( $zip->nextStream > 0 );

my $problem = join '', map { chr } unpack 'V*', $arrays{problem}[1];    # UTF-32
my ($sigma) = $problem =~ /"sigma": ([0-9.]+)/;
my $noise = ( $sigma / 255 )**2;

my $out;
for my $key ( sort grep { m{/y$} } keys %arrays ) {
    my ( $shape, $bytes ) = @{ $arrays{$key} };
    my ( $channels, $height, $width ) = @$shape;
    my @y = unpack 'f<*', $bytes;
    my @x = map { filter( $_, $height, $width, \@y ) } 0 .. $channels - 1;
    my $name = ( $key =~ s{/y$}{/x}r ) . '.npy';
    my %entry = ( Name => $name, Method => ZIP_CM_STORE );
    if ($out) { $out->newStream(%entry) }
    else      { $out = IO::Compress::Zip->new( $restorations, %entry ) or die "$ZipError\n" }
    my $header = "{'descr': '<f4', 'fortran_order': False, 'shape': ($channels, $height, $width), }";
    $header .= ' ' x ( 63 - ( 10 + length $header ) % 64 ) . "\n";
    $out->print( "\x93NUMPY\x01\x00", pack( 'v', length $header ), $header, pack 'f<*', @x );
}
$out->close;

# One channel; the windows are cut at the borders.
sub filter {
    my ( $channel, $height, $width, $y ) = @_;
    my $start = $channel * $height * $width;
    my @x;
    for my $i ( 0 .. $height - 1 ) {
        for my $j ( 0 .. $width - 1 ) {
            my ( $n, $sum, $squares ) = ( 0, 0, 0 );
            for my $row ( max( $i - $radius, 0 ) .. min( $i + $radius, $height - 1 ) ) {
                my $left  = $start + $row * $width + max( $j - $radius, 0 );
                my $right = $start + $row * $width + min( $j + $radius, $width - 1 );
                for ( @$y[ $left .. $right ] ) { $n++; $sum += $_; $squares += $_ * $_ }
            }
            my $mean     = $sum / $n;
            my $variance = $squares / $n - $mean**2;
            my $gain     = $variance > $noise ? 1 - $noise / $variance : 0;
            push @x, $mean + $gain * ( $y->[ $start + $i * $width + $j ] - $mean );
        }
    }
    return @x;
}

sub max { $_[0] > $_[1] ? $_[0] : $_[1] }
sub min { $_[0] < $_[1] ? $_[0] : $_[1] }
